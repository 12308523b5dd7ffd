"""The strict complex scan on a machine without a GPU: its reference is right, its errors are clear, it compiles."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import dispatch
from sigma_kernels.complex_scan.op import mamba3_complex_scan_interleaved
from sigma_kernels.complex_scan.reference import complex_scan_reference
from tests.kernels.compile_only import EVERY_CAPABILITY, compile_kernel
from tests.kernels.complex_scan_cases import make_inputs


@pytest.mark.parametrize("constant", ["", "ab"], ids=["over time", "fixed"])
def test_the_reference_is_the_closed_form_of_the_recurrence(constant):
    inputs = {name: t.double() for name, t in make_inputs(2, 6, constant=constant).items()}
    y, last = complex_scan_reference(**inputs)
    x, a, b, state = (torch.view_as_complex(t) for t in inputs.values())
    a, b = (t if t.dim() == 2 else t[:, None].expand(2, 6) for t in (a, b))
    for t in range(6):
        # h_t = a_t ... a_1 h_0 + sum_s a_t ... a_{s+1} b_s x_s
        h = a[:, : t + 1].prod(1) * state + sum(a[:, s + 1 : t + 1].prod(1) * b[:, s] * x[:, s] for s in range(t + 1))
        torch.testing.assert_close(torch.view_as_complex(y[:, t].contiguous()), h, rtol=1e-12, atol=1e-12)
    assert torch.equal(last, y[:, -1])


def test_the_reference_passes_gradcheck():
    inputs = [t.double().requires_grad_() for t in make_inputs(2, 4, constant="a").values()]
    assert torch.autograd.gradcheck(complex_scan_reference, inputs)


@pytest.mark.skipif(dispatch.interpreting(), reason="the interpreter runs the kernel")
@pytest.mark.parametrize("backend", ["auto", "triton", "reference"])
def test_without_cuda_it_raises_and_says_what_it_needs(backend):
    dispatch.set_backend(backend)
    with pytest.raises(dispatch.BackendError, match=r"CUDA \+ Triton only, and .*(CUDA device|not installed)"):
        mamba3_complex_scan_interleaved(**make_inputs(1, 3))


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("x", torch.zeros(2, 3)),
        ("x", torch.zeros(2, 3, 3)),
        ("x", torch.zeros(2, 0, 2)),
        ("a", torch.zeros(2, 4, 2)),
        ("b", torch.zeros(3, 2)),
        ("state", torch.zeros(2, 1, 2)),
        ("a", torch.zeros(2, 3, 2, dtype=torch.float64)),
        ("state", torch.zeros(2, 2, dtype=torch.bfloat16)),
    ],
)
def test_what_does_not_fit_is_named(name, tensor):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        mamba3_complex_scan_interleaved(**make_inputs(2, 3) | {name: tensor})


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
def test_the_kernels_compile_within_their_budget(capability):
    """At most 8 bytes are spilled, on sm_90 alone: ptxas gives two registers away for one program more."""
    kernel = pytest.importorskip("sigma_kernels.complex_scan.kernel", exc_type=ImportError)
    launch = pytest.importorskip("sigma_kernels.complex_scan.launch", exc_type=ImportError)
    tile = {"BLOCK_LANES": launch.BLOCK_LANES, "BLOCK_T": launch.BLOCK_T, "num_warps": launch.WARPS}
    sizes, strides = ["i32"] * 3, ["i32:16"]
    for function, types, options in (
        (kernel._segment_map_kernel, ["*fp32"] * 4 + sizes + strides * 6, {"REVERSE": True}),
        (kernel._complex_scan_fwd_kernel, ["*fp32"] * 7 + sizes + strides * 7, {}),
        (kernel._complex_scan_bwd_kernel, ["*fp32"] * 12 + sizes + strides * 10, {"SUM_A": False, "SUM_B": False}),
        (kernel._complex_scan_bwd_kernel, ["*fp32"] * 12 + sizes + strides * 10, {"SUM_A": True, "SUM_B": True}),
    ):
        usage = compile_kernel(function, types, capability=capability, **tile, **options)
        assert usage.spilled_bytes <= (8 if capability == 90 else 0)
        assert usage.shared_bytes <= 8 * 1024
