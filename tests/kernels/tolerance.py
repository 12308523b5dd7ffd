"""How far a kernel may be from the exact result: one table for all ops."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the element and to the root mean square of the whole tensor. The 16-bit entries are one unit in the last
# place (two roundings of half a unit); fp32 leaves room for the order of a sum over some ten thousand terms.
TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}


def assert_close(name: str, got: Tensor, exact: Tensor) -> None:
    """Fail unless `got` has the shape of `exact` (float64) and each element lies within the tolerance of its dtype."""
    assert got.shape == exact.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    exact = exact.to(got.device)
    scale = exact.abs() + exact.square().mean().sqrt()
    excess = (got.to(torch.float64) - exact).abs() / (TOLERANCE[got.dtype] * scale).clamp(min=1e-300)
    worst = int(excess.nan_to_num(nan=float("inf")).argmax())
    assert bool((excess <= 1).all()), (
        f"{name}: element {worst} is {got.flatten()[worst].item():.9g}, exact {exact.flatten()[worst].item():.9g}, "
        f"{excess.flatten()[worst].item():.3g} times the tolerance of {got.dtype}; "
        f"{int((~(excess <= 1)).sum())} of {got.numel()} elements are off"
    )
