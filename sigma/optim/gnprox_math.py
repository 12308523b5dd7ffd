"""The mathematics of GNProx for stacks of matrices `[..., m, n]`: damped Gauss-Newton step and ball.

For a matrix W with input x and output gradient d (labels drawn from the model), the Gauss-Newton matrix of the loss is
about A (x) B with A = E[x x^T], B = E[d d^T] (K-FAC, arXiv:1503.05671). In the eigenbases Q_a, Q_b of both it is nearly
diagonal, and its diagonal H is measured there (EKFAC, arXiv:1806.03884).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sigma.optim.eigenbasis import from_basis, to_basis

SIGN_STEPS = 14
_TINY = 1e-30


def noise_exponent(overlap: Tensor, energy: Tensor) -> Tensor:
    """p = 1/2 + 1/2 clip(SNR, 0, 1): 1/2 whitens where noise rules, 1 is Newton's step where there is none.

    SNR = |E g|^2 / E |g|^2 per block: `overlap` is the mean product of gradients of different batches, `energy` that
    of a gradient with itself. A full Newton step pays only near a full batch: arXiv:2510.13680.
    """
    return 0.5 + 0.5 * (overlap / energy.clamp(min=_TINY)).clamp(0, 1)


def damped_step(
    update_MN: Tensor, curvature_MN: Tensor, left_MM: Tensor, right_NN: Tensor, damping: Tensor, power: Tensor
) -> Tensor:
    """Q_b Z Q_a^T with Z = (Q_b^T U Q_a) / (mean(H) (H / mean(H) + damping)^power).

    That is Newton's step at power 1, and in its units at any other. `damping` and `power` broadcast over the blocks.
    """
    mean = curvature_MN.mean((-2, -1), keepdim=True)
    mean = torch.where(mean > 0, mean, 1.0)  # not measured yet: the same everywhere
    z_MN = to_basis(update_MN, left_MM, right_NN) / ((curvature_MN / mean + damping).pow(power) * mean)
    return from_basis(z_MN, left_MM, right_NN)


def quadratic_term(step_MN: Tensor, curvature_MN: Tensor, left_MM: Tensor, right_NN: Tensor) -> Tensor:
    """D^T G D, read off in the eigenbasis: sum of H (Q_b^T D Q_a)^2, one scalar per matrix."""
    return (curvature_MN * to_basis(step_MN, left_MM, right_NN).square()).sum((-2, -1))


def sign_of_singular_values(x_MN: Tensor) -> Tensor:
    """The polar factor in the dtype of `x`, by Newton-Schulz steps (2, -3/2, 1/2), which converge to exactly 1.

    For a symmetric matrix it is the matrix sign. Singular values below about 1e-4 of the Frobenius norm stay small.
    """
    tall = x_MN.size(-2) > x_MN.size(-1)
    x = x_MN.mT if tall else x_MN
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_TINY)
    for _ in range(SIGN_STEPS):
        gram = x @ x.mT
        x = 2 * x - 1.5 * gram @ x + 0.5 * gram @ (gram @ x)
    return x.mT if tall else x


def clip_singular_values(x_MN: Tensor) -> Tensor:
    """The nearest matrix in the operator-norm ball of radius 1: every singular value s becomes min(s, 1).

    min(s, 1) = (s + 1 - |s - 1|) / 2, with |S| = S sign(S) for the symmetric factor of the polar decomposition.
    """
    if x_MN.size(-2) < x_MN.size(-1):
        return clip_singular_values(x_MN.mT).mT
    polar = sign_of_singular_values(x_MN)
    symmetric = polar.mT @ x_MN
    identity = torch.eye(x_MN.size(-1), dtype=x_MN.dtype, device=x_MN.device)
    above = symmetric - identity
    return polar @ (symmetric + identity - above @ sign_of_singular_values(above)) / 2
