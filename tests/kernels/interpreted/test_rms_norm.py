"""The Triton RMSNorm, interpreted: values and every gradient against the float64 formula."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.rms_norm.op import rms_norm
from tests.kernels.rms_norm_cases import EPS, Inputs, exact, make_inputs, run
from tests.kernels.tolerance import assert_close

# One element, an odd width, several tiles for each of the two interpreted programs, a width over the tile.
SHAPES = [(1, 1), (5, 123), (3, 2, 1000), (131, 64), (2, 3000)]


def assert_matches(inputs: Inputs) -> None:
    results, want = run(inputs), exact(inputs)
    assert results.keys() == want.keys()
    for name, got in results.items():
        assert_close(name, got, want[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_matches_the_float64_formula(shape, dtype):
    assert_matches(make_inputs(shape, dtype))


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("weight", [True, False], ids=["weight", "unweighted"])
def test_kernel_matches_without_weight_and_without_residual(weight, residual):
    assert_matches(make_inputs((5, 123), torch.float32, weight=weight, residual=residual))


def test_the_norm_sees_the_sum_as_it_is_stored():
    inputs = make_inputs((5, 123), torch.bfloat16)
    y, total = rms_norm(inputs.x, inputs.weight, residual=inputs.residual, eps=EPS)
    assert torch.equal(y, rms_norm(total, inputs.weight, eps=EPS))


def test_kernel_passes_gradcheck_in_float64():
    drawn = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in [(3, 5), (5,), (3, 5)]]
    assert torch.autograd.gradcheck(lambda x, weight, residual: rms_norm(x, weight, residual=residual), drawn)


def sliced(tensor: torch.Tensor) -> torch.Tensor:
    """The same values as the middle columns of a wider matrix, which one row stride describes."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 7), float("nan"), dtype=tensor.dtype)
    wide[..., 3:-4] = tensor
    return wide[..., 3:-4]


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with the last axis not dense."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


@pytest.mark.parametrize(
    "name, residual", [("x", True), ("residual", True), ("dy", True), ("dsum", True), ("x", False), ("dy", False)]
)
@pytest.mark.parametrize("layout", [sliced, turned], ids=["sliced", "turned"])
def test_one_input_that_is_not_contiguous_gives_the_same_bits(layout, name, residual):
    inputs = make_inputs((2, 5, 33), torch.float32, residual=residual)
    moved = inputs._replace(**{name: layout(getattr(inputs, name))})
    assert not getattr(moved, name).is_contiguous()
    dense, strided = run(inputs), run(moved)
    assert all(torch.equal(dense[key], strided[key]) for key in dense)


def test_a_strided_weight_is_read_right():
    inputs = make_inputs((5, 123), torch.float32)
    assert inputs.weight is not None
    assert_matches(inputs._replace(weight=inputs.weight.repeat_interleave(2)[::2]))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_no_rows_give_no_values_and_a_zero_weight_gradient(shape):
    results = run(make_inputs(shape, torch.float32))
    assert results["y"].shape == results["dx"].shape == shape
    assert torch.equal(results["dweight"], torch.zeros(8))


def test_a_wider_residual_keeps_its_dtype_in_the_sum_and_the_gradients():
    inputs = make_inputs((5, 123), torch.bfloat16)
    assert inputs.residual is not None
    assert inputs.dsum is not None
    mixed = inputs._replace(residual=inputs.residual.float(), dsum=inputs.dsum.float())
    results, want = run(mixed), exact(mixed)
    assert {name: got.dtype for name, got in results.items()} == {
        "y": torch.bfloat16, "sum": torch.float32, "dx": torch.bfloat16, "dweight": torch.bfloat16,
        "dresidual": torch.float32,
    }  # fmt: skip
    for name, got in results.items():
        assert_close(name, got, want[name])


@pytest.mark.parametrize("used", ["y", "sum"])
def test_one_output_alone_gets_the_gradient_of_the_reference(used):
    gradients = {}
    for backend in ("reference", "triton"):
        dispatch.set_backend(backend)
        inputs = make_inputs((5, 123), torch.float32)
        leaves = [t.clone().requires_grad_() for t in inputs[:3] if t is not None]
        y, total = rms_norm(leaves[0], leaves[1], residual=leaves[2], eps=EPS)
        ((y if used == "y" else total) * inputs.dy).sum().backward()
        gradients[backend] = [leaf.grad for leaf in leaves]
    for got, want in zip(gradients["triton"], gradients["reference"], strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert_close("gradient", got, want.double())


def test_the_kernel_counts_as_the_reference_does():
    run(make_inputs((5, 123), torch.float32))
    kernel = counters.snapshot()
    counters.load({})
    dispatch.set_backend("reference")
    run(make_inputs((5, 123), torch.float32))
    assert kernel == {"rms_norm.backward": 1, "rms_norm.forward": 1, "rms_norm.use_triton": 1}
    assert counters.snapshot() == {"rms_norm.backward": 1, "rms_norm.forward": 1, "rms_norm.use_reference": 1}


def test_only_the_sum_and_one_statistic_per_row_are_kept():
    saved = []
    inputs = make_inputs((5, 123), torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        leaves = [t.clone().requires_grad_() for t in inputs[:3] if t is not None]
        _, total = rms_norm(leaves[0], leaves[1], residual=leaves[2])
    assert sorted((tuple(t.shape), str(t.dtype)) for t in saved) == [
        ((5,), "torch.float32"), ((5, 123), "torch.bfloat16"), ((123,), "torch.bfloat16"),
    ]  # fmt: skip
    assert any(t.data_ptr() == total.data_ptr() for t in saved)
