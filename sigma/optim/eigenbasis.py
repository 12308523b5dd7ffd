"""Eigenbases of slowly moving covariances, for optimizers that work in the axes of their curvature.

A basis begins as the identity and follows its matrix by steps of orthogonal iteration (one product and one QR), which
never wait for the device. `eigh` would, and raises where a gradient is not finite. SOAP, arXiv:2409.11321, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RELATIVE_SHIFT = 1e-6
_TINY = 1e-30


def follow_basis(matrix_KNN: Tensor, basis_KNN: Tensor) -> Tensor:
    """One step of orthogonal iteration from `basis`; the largest eigenvalues come to stand first.

    The small shift keeps the directions in which the matrix is zero where they were.
    """
    mean = matrix_KNN.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    # to a mean eigenvalue of 1: gradients may be so small that their squares are denormal
    relative = matrix_KNN / mean.clamp(min=_TINY)
    return torch.linalg.qr(torch.baddbmm(_RELATIVE_SHIFT * basis_KNN, relative, basis_KNN)).Q


def to_basis(x_MN: Tensor, left_MM: Tensor, right_NN: Tensor) -> Tensor:
    """Coordinates `left^T x right` of `[..., m, n]`."""
    return left_MM.mT @ x_MN @ right_NN


def from_basis(z_MN: Tensor, left_MM: Tensor, right_NN: Tensor) -> Tensor:
    """The inverse of `to_basis`: `left z right^T`."""
    return left_MM @ z_MN @ right_NN.mT
