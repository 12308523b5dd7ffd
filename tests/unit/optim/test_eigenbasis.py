"""Eigenbases that follow a slowly moving covariance."""

import pytest
import torch

from sigma.optim.eigenbasis import follow_basis, from_basis, to_basis


def covariance(seed: int, size: int = 6, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, size, rank or size, generator=generator) * torch.logspace(0, -1, rank or size)
    return x @ x.mT


def eigenbasis(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigh(matrix).eigenvectors.flip(-1)


def off_diagonal(matrix: torch.Tensor, basis: torch.Tensor) -> float:
    turned = basis.mT @ matrix @ basis
    return float((turned - torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))).norm() / turned.norm())


@pytest.mark.parametrize("rank", [None, 3], ids=["full rank", "rank 3 of 6"])
def test_following_a_fixed_matrix_converges_to_its_eigenbasis(rank: int | None) -> None:
    matrix, basis = covariance(1, rank=rank), torch.eye(6).expand(2, 6, 6)
    for _ in range(200):
        basis = follow_basis(matrix, basis)
    values = (basis.mT @ matrix @ basis).diagonal(dim1=-2, dim2=-1)
    assert off_diagonal(matrix, basis) < 1e-3
    assert (values.diff(dim=-1) <= 1e-4).all(), "the largest first"
    assert torch.allclose(basis.mT @ basis, torch.eye(6).expand(2, 6, 6), atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e12], ids=str)
def test_following_is_orthonormal_at_any_size_of_the_matrix(size: float) -> None:
    start = eigenbasis(covariance(2))
    basis = follow_basis(size * covariance(3), start)
    assert torch.allclose(basis.mT @ basis, torch.eye(6).expand(2, 6, 6), atol=1e-5)
    if size == 0:
        assert torch.allclose(basis.abs(), start.abs(), atol=1e-5)
    else:
        assert torch.allclose(basis, follow_basis(covariance(3), start), atol=1e-4)


def test_there_and_back_is_the_identity() -> None:
    left, right = eigenbasis(covariance(4)), eigenbasis(covariance(5, size=4))
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(6))
    for a, b in ((left, right), (left, torch.eye(4)), (torch.eye(6), right)):
        assert torch.allclose(from_basis(to_basis(x, a, b), a, b), x, atol=1e-5)
