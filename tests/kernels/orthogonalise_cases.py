"""What the tests of the orthogonalisation share: matrices with a chosen spectrum, and their polar factor in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def random_batch(*shape: int, seed: int = 0, device: str = "cpu") -> Tensor:
    """Normal values, the same for every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def with_spectrum(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A batch `[1, rows, columns]` with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(side, len(values), generator=generator, dtype=torch.float64) for side in (rows, columns))
    u, v = torch.linalg.qr(left)[0], torch.linalg.qr(right)[0]
    return ((u * values.double()) @ v.T)[None].float()


def polar(x_KMN: Tensor) -> Tensor:
    """U V^T in float64, of rank-deficient matrices too (directions without a singular value stay out)."""
    u, s, vh = torch.linalg.svd(x_KMN.double(), full_matrices=False)
    kept = (s > 1e-5 * s.amax(dim=-1, keepdim=True)) & (s > 0)
    return (u * kept[..., None, :]) @ vh


def relative(got: Tensor, want: Tensor) -> float:
    """Distance in the Frobenius norm, relative to `want`."""
    return float((got.double() - want.double()).norm() / want.double().norm())
