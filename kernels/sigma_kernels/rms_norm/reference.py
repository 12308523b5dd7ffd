"""RMSNorm in plain PyTorch: the specification of the op, and what runs where Triton cannot."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(
    x: Tensor, weight: Tensor | None, *, residual: Tensor | None = None, eps: float = 1e-6
) -> Tensor | tuple[Tensor, Tensor]:
    """y = h / sqrt(mean(h^2) + eps) * weight over the last axis, with h = x + residual.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4. Statistics and products are at least
    fp32; y is rounded once. The norm sees h as it is stored, rounded to the wider dtype of x and residual.

    Args:
        x: `[..., D]`.
        weight: `[D]`, or None for ones.
        residual: the shape of x, or None.
        eps: added to the mean of the squares.

    Returns:
        y with the shape and dtype of x; with a residual the pair (y, h).
    """
    h = x if residual is None else x + residual
    exact = h.to(torch.promote_types(h.dtype, torch.float32))
    y = exact * torch.rsqrt(exact.square().mean(dim=-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(exact.dtype)
    y = y.to(x.dtype)
    return y if residual is None else (y, h)
