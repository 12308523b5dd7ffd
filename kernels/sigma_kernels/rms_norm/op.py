"""The public RMSNorm: checks the shapes, asks dispatch, and counts."""

from __future__ import annotations

from typing import overload

from torch import Tensor

from sigma_kernels import dispatch
from sigma_kernels.counted import count_reference
from sigma_kernels.rms_norm.reference import rms_norm_reference
from sigma_kernels.row_tiles import WIDEST


@overload
def rms_norm(x: Tensor, weight: Tensor | None, *, residual: None = None, eps: float = 1e-6) -> Tensor: ...
@overload
def rms_norm(x: Tensor, weight: Tensor | None, *, residual: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor, weight: Tensor | None, *, residual: Tensor | None = None, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """y = norm(x + residual) * weight over the last axis; the Triton kernel on CUDA, the reference elsewhere.

    Counts `rms_norm.forward` and `rms_norm.backward`. The backward of the Triton path keeps the sum (or x) and one
    statistic per row, and recomputes the rest.

    Args:
        x: `[..., D]`, 1 <= D <= 16384, any strides.
        weight: `[D]`, or None for ones.
        residual: the shape of x, or None.
        eps: added to the mean of the squares.

    Returns:
        y with the shape and dtype of x; with a residual the pair (y, x + residual).

    Raises:
        ValueError: the shapes do not fit, or D is out of range.
    """
    _check(x, weight, residual)
    tensors = [tensor for tensor in (x, weight, residual) if tensor is not None]
    if dispatch.use_triton("rms_norm", *tensors):
        from sigma_kernels.rms_norm.kernel import RmsNormFn

        outputs = RmsNormFn.apply(x, weight, residual, eps)
    else:
        result = rms_norm_reference(x, weight, residual=residual, eps=eps)
        outputs = count_reference("rms_norm", *(result if isinstance(result, tuple) else (result,)))
    return outputs[0] if residual is None else (outputs[0], outputs[1])


def _check(x: Tensor, weight: Tensor | None, residual: Tensor | None) -> None:
    if x.ndim == 0 or not 1 <= x.shape[-1] <= WIDEST:
        raise ValueError(f"rms_norm: the last axis of x must be 1 to {WIDEST} wide, x is {tuple(x.shape)}")
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: weight is {tuple(weight.shape)}, x needs {tuple(x.shape[-1:])}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"rms_norm: residual is {tuple(residual.shape)}, x is {tuple(x.shape)}")
