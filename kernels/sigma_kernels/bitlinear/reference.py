"""The b1.58 quantisers and the ternary product in plain PyTorch: the specification.

Ma et al., "The Era of 1-bit LLMs" (2402.17764) and the 2B4T report (2504.12285): weights ternary with one absmean
scale per matrix, activations int8 with one absmax scale per row, straight-through gradients through both roundings.
M rows, K input channels, N output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5
"""Smallest absmean of a weight and smallest absmax of a row: a zero tensor quantises to zeros, not to NaN."""


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def quantize_weight_reference(w: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary codes (int8, the shape of `w`) and scale (fp32): `w` is about `scale * codes`.

    The scale is the mean magnitude of the whole matrix, a scalar; a stack `[E, N, K]` has one for each of its
    matrices, `[E]`. Ties round to even. fp64 stays fp64.
    """
    w = _at_least_fp32(w)
    scale = w.abs().mean(dim=(-2, -1)).clamp(min=EPS)
    codes = (w / scale[..., None, None]).round().clamp(-1, 1)
    return codes.to(torch.int8), scale


def quantize_activation_reference(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Codes in `dtype` (the shape of `x`) and scale (fp32, one per row): `x` is about `scale[..., None] * codes`.

    The largest magnitude of a row becomes 127. Ties round to even. A row that holds NaN or infinity has a scale that
    is not finite, so the failure stays visible in the product.
    """
    x = _at_least_fp32(x)
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=EPS)
    full = torch.full_like(largest, 127)  # a tensor: by a number, each device divides in its own way
    codes = (x * (full / largest)).round().clamp(-128, 127)
    return codes.to(torch.int8).to(dtype), (largest / full)[..., 0]  # by int8, where NaN is a number


def scale_rows_reference(a_MN: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Every row times its factor (`[M]`, or a scalar for all), in the wider dtype of both, rounded once to `dtype`."""
    out = torch.empty(a_MN.shape, dtype=dtype, device=a_MN.device)
    return torch.mul(a_MN, factor.reshape(-1, 1), out=out)


def fake_quantize_weight(w: Tensor) -> Tensor:
    """`scale * codes` with the gradient of the identity."""
    codes, scale = quantize_weight_reference(w.detach())
    return w + (codes * scale[..., None, None] - w).detach()


def fake_quantize_activation(x: Tensor) -> Tensor:
    """`scale * codes` of every row with the gradient of the identity."""
    codes, scale = quantize_activation_reference(x.detach())
    return x + (codes * scale[..., None] - x).detach()


def bit_linear_reference(x: Tensor, weight: Tensor) -> Tensor:
    """The ternary product by autograd, as the straight-through estimator is usually written."""
    return fake_quantize_activation(x) @ fake_quantize_weight(weight).mT
