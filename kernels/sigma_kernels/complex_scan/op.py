"""The strict op `mamba3_complex_scan_interleaved`: one implementation, and a clear error where it cannot run."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels import dispatch


def mamba3_complex_scan_interleaved(x: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t x_t over complex numbers, y = h; differentiable in all four. CUDA + Triton only.

    All tensors are fp32 with (real, imaginary) interleaved in the last axis; gradients are those of the real numbers
    (of a complex z, dL/dRe z and dL/dIm z). Any a is allowed, 0 and |a| > 1 included, as long as h and the products of
    neighbouring |a| stay within the range of fp32. Counts `complex_scan.forward` and `complex_scan.backward`.

    Args:
        x: `[lanes, T, 2]`, any strides (only an interleaved pair that is not dense is copied).
        a, b: `[lanes, T, 2]`, or `[lanes, 2]` where they do not change in time.
        state: h before the first step, `[lanes, 2]`.

    Returns:
        (y `[lanes, T, 2]`, the state after the last step `[lanes, 2]`).

    Raises:
        ValueError: a shape or a dtype does not fit.
        BackendError: without CUDA, without Triton, or where the reference backend was asked for.
    """
    _check(x, a, b, state)
    _require_triton(x, a, b, state)
    from sigma_kernels.complex_scan.launch import ComplexScanFn

    y, last = ComplexScanFn.apply(x, a, b, state)  # pyright: ignore[reportGeneralTypeIssues]
    return y, last


def _require_triton(*tensors: Tensor) -> None:
    reason = dispatch.why_not_triton(*tensors)
    if reason is None and not dispatch.use_triton("complex_scan", *tensors):
        reason = dispatch.report()["complex_scan"]
    if reason is not None:
        raise dispatch.BackendError(
            f"mamba3_complex_scan_interleaved runs on CUDA + Triton only, and {reason}; move the tensors to a CUDA "
            "device with Triton installed, or use mamba3_scan, which runs everywhere"
        )


def _check(x: Tensor, a: Tensor, b: Tensor, state: Tensor) -> None:
    if x.dim() != 3 or x.shape[2] != 2 or 0 in x.shape:
        raise ValueError(f"x: expected [lanes, T, 2] with no empty axis, got {tuple(x.shape)}")
    lanes, steps, _ = x.shape
    for name, t in (("a", a), ("b", b)):
        if t.shape not in ((lanes, steps, 2), (lanes, 2)):
            raise ValueError(f"{name}: expected {(lanes, steps, 2)} or {(lanes, 2)}, got {tuple(t.shape)}")
    if state.shape != (lanes, 2):
        raise ValueError(f"state: expected {(lanes, 2)}, got {tuple(state.shape)}")
    for name, t in (("x", x), ("a", a), ("b", b), ("state", state)):
        if t.dtype != torch.float32:
            raise ValueError(f"{name}: expected torch.float32, got {t.dtype}")
