"""The Triton RMSNorm on a GPU: values, gradients, large shapes, and the same bits in every run."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters
from sigma_kernels.rms_norm.op import rms_norm
from sigma_kernels.row_tiles import WIDEST
from tests.kernels.rms_norm_cases import exact, make_inputs, run
from tests.kernels.tolerance import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_backend")]

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (5, 123), (3, 7, 768), (4, 1000, 64), (16384, 2048), (513, 8192), (300, WIDEST)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_match_the_float64_formula(shape, dtype):
    inputs = make_inputs(shape, dtype, device="cuda")
    results, want = run(inputs), exact(inputs)
    assert results.keys() == want.keys()
    for name, got in results.items():
        assert_close(name, got, want[name])


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("weight", [True, False], ids=["weight", "unweighted"])
def test_weight_and_residual_are_optional(weight, residual):
    inputs = make_inputs((999, 384), torch.bfloat16, weight=weight, residual=residual, device="cuda")
    results, want = run(inputs), exact(inputs)
    assert results.keys() == want.keys()
    for name, got in results.items():
        assert_close(name, got, want[name])


def test_fp32_master_weights_and_residual_stream_go_with_bf16_activations():
    inputs = make_inputs((999, 768), torch.bfloat16, device="cuda")
    assert inputs.weight is not None
    assert inputs.residual is not None
    assert inputs.dsum is not None
    mixed = inputs._replace(weight=inputs.weight.float(), residual=inputs.residual.float(), dsum=inputs.dsum.float())
    results, want = run(mixed), exact(mixed)
    assert results["dweight"].dtype == results["dresidual"].dtype == torch.float32
    for name, got in results.items():
        assert_close(name, got, want[name])


def test_columns_of_a_wider_projection_are_read_in_place():
    wide = torch.randn(64, 33, 200, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)).cuda()
    part = wide[..., 50:178]
    assert torch.equal(rms_norm(part, None), rms_norm(part.contiguous(), None))


def test_elements_beyond_two_to_the_31st_are_reached():
    """Offsets in 32 bits would wrap here: 2^31 elements and one row more."""
    x = torch.zeros(2**31 // WIDEST + 1, WIDEST, dtype=torch.bfloat16, device="cuda")
    x[-1] = 3.0
    y = rms_norm(x, None)
    assert torch.equal(y[-1], torch.ones_like(y[-1]))
    assert torch.equal(y[0], torch.zeros_like(y[0]))


def test_two_runs_give_the_same_bits():
    inputs = make_inputs((20000, 768), torch.bfloat16, device="cuda")
    first = run(inputs)
    for _ in range(5):
        again = run(inputs)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_no_rows_launch_nothing():
    results = run(make_inputs((0, 64), torch.bfloat16, device="cuda"))
    assert torch.equal(results["dweight"], torch.zeros_like(results["dweight"]))


def test_the_kernel_ran_and_not_the_reference():
    before = counters.get("rms_norm.use_triton"), counters.get("rms_norm.backward")
    run(make_inputs((5, 123), torch.bfloat16, device="cuda"))
    assert (counters.get("rms_norm.use_triton"), counters.get("rms_norm.backward")) == (before[0] + 1, before[1] + 1)
