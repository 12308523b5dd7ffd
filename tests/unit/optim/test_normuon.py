"""NorMuon and AdaMuon against their papers' equations."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.config.optim import OptimSection
from sigma.optim.adamuon import AdaMuon
from sigma.optim.matrix import MatrixOptimizer
from sigma.optim.normuon import NorMuon
from sigma.optim.routing import Route
from sigma_kernels.orthogonalise.op import orthogonalise

LR = 0.02
ROWS, COLUMNS = 30, 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(direction: type, steps: int = 4, decay: float = 0.0, **flags) -> list[Tensor]:
    """The weights after each step."""
    optim, parameter = OptimSection(**flags), Parameter(draw(ROWS, COLUMNS))
    route = Route("w", (ROWS, COLUMNS), "hidden", "matrix", LR, decay)
    optimizer = MatrixOptimizer({"w": parameter}, [route], direction(optim), optim)
    found = [parameter.detach().clone()]
    for seed in range(1, steps + 1):
        # rows of very different size, as of neurons that are seldom used
        parameter.grad = draw(ROWS, COLUMNS, seed=seed) * torch.logspace(-2, 0, ROWS)[:, None]
        optimizer.step()
        found.append(parameter.detach().clone())
    return found


def averages(steps: int = 4, beta: float = 0.95) -> list[tuple[Tensor, Tensor]]:
    """(momentum, Nesterov mix) of the gradients of `run`."""
    momentum, found = torch.zeros(ROWS, COLUMNS), []
    for seed in range(1, steps + 1):
        grad = draw(ROWS, COLUMNS, seed=seed) * torch.logspace(-2, 0, ROWS)[:, None]
        momentum = beta * momentum + (1 - beta) * grad
        found.append((momentum, (1 - beta) * grad + beta * momentum))
    return found


def updates(weights: list[Tensor]) -> list[Tensor]:
    return [(a - b) / LR for a, b in itertools.pairwise(weights)]


def test_normuon_is_the_papers_equation_with_the_norm_of_the_polar_factor() -> None:
    second = torch.zeros(ROWS)
    for (_, mixed), got in zip(averages(), updates(run(NorMuon)), strict=True):
        polar = orthogonalise(mixed[None].bfloat16())[0].float()
        second = 0.95 * second + 0.05 * polar.square().mean(dim=1)
        rows = polar / (second.sqrt()[:, None] + 1e-8)
        want = 0.2 * math.sqrt(ROWS) * rows * polar.norm() / rows.norm()
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_normuon_evens_out_the_rows_of_the_update() -> None:
    spread = {}
    for name, flags in {"normuon": {}, "muon": {"normuon_beta2": 1.0}}.items():
        norms = updates(run(NorMuon, **flags))[-1].norm(dim=1)
        spread[name] = float(norms.std() / norms.mean())
    assert spread["normuon"] < 0.5 * spread["muon"]


def test_normuon_with_beta2_one_and_torchs_polynomial_is_torch_muon() -> None:
    mine = run(NorMuon, normuon_beta2=1.0, muon_polynomial="newton_schulz")
    parameter = Parameter(draw(ROWS, COLUMNS))
    optimizer = torch.optim.Muon([parameter], lr=LR, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for seed in range(1, 5):
        parameter.grad = draw(ROWS, COLUMNS, seed=seed) * torch.logspace(-2, 0, ROWS)[:, None]
        optimizer.step()
    torch.testing.assert_close(mine[-1], parameter.detach(), rtol=1e-6, atol=1e-7)


def test_adamuon_is_the_papers_equation() -> None:
    second = torch.zeros(ROWS, COLUMNS)
    for (momentum, _), got in zip(averages(), updates(run(AdaMuon)), strict=True):
        polar = orthogonalise(momentum.sign()[None])[0].float()
        second = 0.95 * second + 0.05 * polar.square()
        moved = polar / (second.sqrt() + 1e-8)
        want = moved * 0.2 * math.sqrt(ROWS * COLUMNS) / moved.norm()
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("direction", [NorMuon, AdaMuon])
def test_the_update_has_the_root_mean_square_of_adamw(direction: type) -> None:
    for update in updates(run(direction)):
        assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize(
    "direction, flag", [(NorMuon, "normuon_beta2"), (AdaMuon, "adamuon_beta2")], ids=["normuon", "adamuon"]
)
def test_its_beta2_changes_the_weights(direction: type, flag: str) -> None:
    assert not torch.equal(run(direction)[-1], run(direction, **{flag: 0.5})[-1])
