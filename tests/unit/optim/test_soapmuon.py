"""SOAP-Muon: whitening before the polar factor."""

import torch
from torch import Tensor
from torch.nn import Parameter

from tests.unit.optim.planted import GO, Student, optimizers_for, train


class Plain:
    """One matrix of 6 x 4."""

    def __init__(self) -> None:
        self.parameters, self.roles = {"w": Parameter(torch.zeros(6, 4))}, {"w": "hidden"}


def gradient(seed: int, left: Tensor, right: Tensor) -> Tensor:
    return left @ torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) @ right


def moved(size: float = 1.0, turn: Tensor | None = None, optimizer: str = "soapmuon", steps: int = 30) -> Tensor:
    """The last update under gradients whose rows and columns have very different sizes, after `steps` of them."""
    problem = Plain()
    optimizers = optimizers_for(problem, optimizer=optimizer, lr=1.0)
    left = torch.diag(torch.logspace(0, -2, 6)) if turn is None else turn @ torch.diag(torch.logspace(0, -2, 6))
    before = problem.parameters["w"].detach().clone()
    for seed in range(steps):
        before = problem.parameters["w"].detach().clone()
        problem.parameters["w"].grad = size * gradient(seed, left, torch.diag(torch.logspace(0, -1, 4)))
        optimizers.step(GO)
    return problem.parameters["w"].detach() - before


def test_the_update_does_not_depend_on_the_unit_of_the_gradient() -> None:
    assert torch.allclose(moved(), moved(size=1e-4), atol=2e-2)


def test_turning_the_rows_turns_the_update() -> None:
    """Equivariance: the eigenbasis is found, whatever axes the gradients come in."""
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    assert float((moved(turn=turn) - turn @ moved()).norm() / moved().norm()) < 0.1


def test_whitening_gives_small_rows_their_share() -> None:
    """Muon's polar factor of 4 columns takes the large rows; whitened rows weigh alike."""
    whitened, plain = (moved(optimizer=name).square().sum(1) for name in ("soapmuon", "muon"))
    assert whitened[4:].sum() > 5 * plain[4:].sum()


def test_the_basis_diagonalises_the_covariance_of_the_gradients() -> None:
    problem = Plain()
    optimizers = optimizers_for(problem, optimizer="soapmuon", soap_interval=3)
    for seed in range(60):
        problem.parameters["w"].grad = gradient(seed, torch.diag(torch.logspace(0, -2, 6)), torch.eye(4))
        optimizers.step(GO)
    tensors = optimizers.tensors()
    turned = tensors["w|soap_left_basis"].T @ tensors["w|soap_left"] @ tensors["w|soap_left_basis"]
    assert float((turned - torch.diag(turned.diagonal())).norm() / turned.norm()) < 0.05


def test_refresh_interval_and_memory_change_the_update() -> None:
    ends = []
    for flags in ({}, {"soap_interval": 2}, {"soap_beta": 0.5}):
        problem = Student()
        train(problem, optimizers_for(problem, optimizer="soapmuon", **flags), 15)
        ends.append(torch.stack(list(problem.parameters.values())))
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
