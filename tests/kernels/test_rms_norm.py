"""The RMSNorm reference is right, the op guards and counts, and the Triton kernels compile within their budget."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.rms_norm.op import rms_norm
from sigma_kernels.rms_norm.reference import rms_norm_reference
from sigma_kernels.row_tiles import WIDEST
from tests.kernels.compile_only import EVERY_CAPABILITY, compile_kernel
from tests.kernels.rms_norm_cases import exact, make_inputs, run
from tests.kernels.tolerance import assert_close

REGISTERS_PER_MULTIPROCESSOR = 65536
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("weight", [True, False], ids=["weight", "unweighted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference_matches_the_float64_formula_in_values_and_gradients(dtype, weight, residual):
    inputs = make_inputs((3, 5, 123), dtype, weight=weight, residual=residual)
    results, want = run(inputs, rms_norm_reference), exact(inputs)
    assert results.keys() == want.keys()
    for name, got in results.items():
        assert_close(name, got, want[name])


def test_reference_passes_gradcheck():
    x, residual = (torch.randn(3, 7, dtype=torch.float64, generator=_seeded(n)).requires_grad_() for n in (0, 1))
    weight = torch.randn(7, dtype=torch.float64, generator=_seeded(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: rms_norm_reference(t[0], t[1], residual=t[2]), (x, weight, residual))


def test_a_row_of_zeros_stays_zero_and_its_gradient_is_finite():
    x = torch.zeros(2, 5, requires_grad=True)
    y = rms_norm(x, None)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 5))
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_the_sum_keeps_the_wider_dtype_and_the_norm_that_of_x():
    y, total = rms_norm(torch.ones(2, 4, dtype=torch.bfloat16), None, residual=torch.full((2, 4), 1 / 3))
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(total, torch.full((2, 4), 4 / 3))


@pytest.mark.parametrize(
    "x, weight, residual, message",
    [
        ((), None, None, "last axis"),
        ((2, 0), None, None, "last axis"),
        ((1, WIDEST + 1), None, None, "last axis"),
        ((2, 4), (3,), None, "weight is"),
        ((2, 4), (1, 4), None, "weight is"),
        ((2, 4), (4,), (4,), "residual is"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, weight, residual, message):
    tensors = [None if shape is None else torch.zeros(shape) for shape in (x, weight, residual)]
    with pytest.raises(ValueError, match=message):
        rms_norm(tensors[0], tensors[1], residual=tensors[2])


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
def test_the_op_counts_each_forward_and_each_backward(residual):
    inputs = make_inputs((2, 5), torch.float32, residual=residual)
    run(inputs)
    with torch.no_grad():
        rms_norm(inputs.x, inputs.weight)
    assert counters.get("rms_norm.forward") == 2
    assert counters.get("rms_norm.backward") == 1


def test_the_backward_of_the_sum_alone_counts_too():
    x = torch.ones(2, 5, requires_grad=True)
    rms_norm(x, None, residual=torch.ones(2, 5))[1].sum().backward()
    assert counters.get("rms_norm.backward") == 1


def test_demanding_triton_for_a_cpu_tensor_is_an_error_that_says_why():
    dispatch.set_backend("triton")
    with pytest.raises(dispatch.BackendError, match=r"not on a CUDA device|not installed"):
        rms_norm(torch.ones(2, 5), None)


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("width, spilled_bytes", [(64, 0), (768, 0), (8192, 8), (WIDEST, 32)])
def test_the_kernels_compile_within_their_budget(width, spilled_bytes, capability):
    """The backward counts on 16 resident warps per multiprocessor; only the widest rows may spill, a few bytes."""
    kernel = pytest.importorskip("sigma_kernels.rms_norm.kernel", exc_type=ImportError)
    tile = kernel.tile_of(width, torch.float32)
    forward = ["*bf16", "*bf16", "*fp32", "*bf16", "*bf16", "*fp32", "i32", "i32:16", "i32:16", "fp32"]
    backward = ["*bf16", "*bf16", "*bf16", "*fp32", "*fp32", "*bf16", "*fp32", "i32", "i32:16", "i32:16", "i32:16"]
    for function, types in ((kernel._rms_norm_fwd_kernel, forward), (kernel._rms_norm_bwd_kernel, backward)):
        usage = compile_kernel(function, types, capability=capability, **tile)
        assert usage.registers * 32 * kernel.BACKWARD_WARPS <= REGISTERS_PER_MULTIPROCESSOR
        assert usage.spilled_bytes <= spilled_bytes
        assert usage.shared_bytes <= 16 * 1024


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
