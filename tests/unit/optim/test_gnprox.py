"""GNProx on problems with a known curvature: Newton's step, the reduction ratio, damping, the ball, the decay."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.optim.blocks import BlockBatch
from sigma.optim.build import OptimizerSet
from sigma.optim.gnprox import GNProx
from sigma.optim.gnprox_statistics import DIAGONAL, INPUT_BASIS, MASS, OUTPUT_BASIS
from tests.unit.optim.planted import GO, optimizers_for

NEWTON = {
    "optimizer": "gnprox", "gn_mode": "clip", "gn_noise_aware": False, "gn_exponent": 1.0, "muon_momentum": 0.0,
    "gn_damping_min": 0.0, "gn_damping_interval": 1,
}  # fmt: skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(size: int, condition: float, seed: int) -> Tensor:
    """A symmetric matrix with this condition, in axes of its own."""
    turn = torch.linalg.qr(draw(size, size, seed=seed)).Q
    return turn @ torch.diag(torch.logspace(0, -torch.tensor(condition).log10().item(), size)) @ turn.T


class Quadratic:
    """tr((W - W*)^T B (W - W*) A) / 2."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right
        self.target = draw(len(left), len(right), seed=3)
        self.parameters, self.roles = {"w": Parameter(torch.zeros_like(self.target))}, {"w": "hidden"}

    def loss(self) -> Tensor:
        away = (self.parameters["w"] - self.target).double()
        return 0.5 * (away * (self.left.double() @ away @ self.right.double())).sum()


def parts(optimizers: OptimizerSet) -> tuple[GNProx, BlockBatch]:
    assert optimizers.matrix is not None
    optimizers.matrix.prepare()
    assert isinstance(optimizers.matrix.direction, GNProx)
    return optimizers.matrix.direction, optimizers.matrix.batches[0]


def know(batch: BlockBatch, left: Tensor, right: Tensor) -> None:
    """Give the optimizer the exact curvature."""
    found = [torch.linalg.eigh(m.double()) for m in (left, right)]
    batch.state[OUTPUT_BASIS][0], batch.state[INPUT_BASIS][0] = found[0].eigenvectors, found[1].eigenvectors
    batch.state[DIAGONAL][0] = torch.outer(*(f.eigenvalues.clamp(min=0) for f in found))
    batch.state[MASS].fill_(1)


def descend(problem: Any, optimizers: OptimizerSet, steps: int, each: Callable[[], None] = lambda: None) -> list[float]:
    """Losses; the damping follows the reduction ratio in every step."""
    direction, batch = parts(optimizers)
    losses = [float(problem.loss().detach())]
    for _ in range(steps):
        each()
        before = batch.weights()
        problem.loss().backward()
        optimizers.step(GO)
        optimizers.zero_grad()
        losses.append(float(problem.loss().detach()))
        actual = torch.tensor(losses[-2] - losses[-1])
        direction.damping.adapt(actual, direction.promised([before - batch.weights()]))
    return losses


KRONECKER = {"matrix of condition 1e6": (1e3, 1e3), "diagonal of condition 1e4": (1.0, 1e4)}


@pytest.mark.parametrize("conditions", KRONECKER.values(), ids=KRONECKER)
def test_exact_factors_converge_in_ten_steps_where_others_need_many_more(conditions: tuple[float, float]) -> None:
    """T3."""
    left, right = spread(6, conditions[0], 1), spread(5, conditions[1], 2)
    problem = Quadratic(left, right)
    optimizers = optimizers_for(problem, **NEWTON, lr=10.0, gn_damping=1e-9)
    know(parts(optimizers)[1], left, right)
    losses = descend(problem, optimizers, 10)
    assert losses[-1] < 1e-6 * losses[0]
    for other in ("normuon", "adamw"):
        problem = Quadratic(left, right)
        optimizers = optimizers_for(problem, optimizer=other, lr=0.1)
        for _ in range(10):
            problem.loss().backward()
            optimizers.step(GO)
            optimizers.zero_grad()
        assert float(problem.loss().detach()) > 1e-2 * losses[0], other


def test_the_reduction_ratio_of_a_quadratic_is_one() -> None:
    """T3: within 1e-3, for short steps and for Newton's."""
    left, right = spread(6, 10.0, 1), spread(5, 10.0, 2)
    for lr in (1e-2, 10.0):
        problem = Quadratic(left, right)
        optimizers = optimizers_for(problem, **NEWTON, lr=lr, gn_damping=0.1)
        direction, batch = parts(optimizers)
        know(batch, left, right)
        for _ in range(3):
            descend(problem, optimizers, 1)
            assert float(direction.damping.ratio) == pytest.approx(1, abs=1e-3)


def test_damping_falls_for_short_steps_and_rises_for_steps_that_overshoot() -> None:
    """T5."""
    left, right = spread(6, 10.0, 1), spread(5, 10.0, 2)
    for lr, rises in ((1e-3, False), (30.0, True)):
        problem = Quadratic(left, right)
        flags = {"optimizer": "gnprox", "gn_damping_interval": 1, "muon_momentum": 0.0}
        optimizers = optimizers_for(problem, **flags, lr=lr, gn_damping=0.1)
        direction, batch = parts(optimizers)
        know(batch, left, right)
        descend(problem, optimizers, 5)
        assert (float(direction.damping.value) > 0.1) is rises


class Rosenbrock:
    """Least squares with residuals 10 (x_(i+1) - x_i^2) and 1 - x_i; one row, so A is the whole Gauss-Newton matrix."""

    def __init__(self, size: int) -> None:
        start = torch.tensor([-1.2, 1.0]).repeat(size // 2)
        self.parameters, self.roles = {"w": Parameter(start[None].clone())}, {"w": "hidden"}

    def residuals(self, x: Tensor) -> Tensor:
        return torch.cat([10 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])

    def loss(self) -> Tensor:
        return self.residuals(self.parameters["w"][0]).square().sum() / 2

    def curvature(self) -> Tensor:
        jacobian = torch.func.jacrev(self.residuals)(self.parameters["w"].detach()[0])
        return jacobian.T @ jacobian


@pytest.mark.parametrize("size", [2, 20], ids=str)
def test_rosenbrock_goes_down_in_every_step_after_the_warm_up(size: int) -> None:
    """T4."""
    problem = Rosenbrock(size)
    optimizers = optimizers_for(problem, **NEWTON, lr=0.2, gn_damping=1e-3)
    batch = parts(optimizers)[1]
    losses = descend(problem, optimizers, 300, lambda: know(batch, torch.ones(1, 1), problem.curvature()))
    assert max(losses) == losses[0]
    settled = losses[20:]
    assert all(b <= a * (1 + 1e-5) + 1e-9 for a, b in pairwise(settled))
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("mode, lr", [("polar", 0.1), ("newton", 0.1), ("clip", 4.0)])
def test_every_mode_keeps_its_step_inside_its_ball(mode: str, lr: float) -> None:
    left, right = spread(6, 100.0, 1), spread(5, 100.0, 2)
    problem = Quadratic(left, right)
    optimizers = optimizers_for(problem, **NEWTON | {"gn_mode": mode}, lr=lr, gn_damping=0.1)
    know(parts(optimizers)[1], left, right)
    problem.loss().backward()
    optimizers.step(GO)
    step = problem.parameters["w"].detach() / lr
    values = torch.linalg.svdvals(step)
    if mode == "newton":
        assert float(step.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-4)
    else:
        assert float(values.max()) < 0.2 * 6**0.5 * 1.25
    if mode == "polar":
        assert float(values.min() / values.max()) > 0.6
    else:
        assert float(values.min() / values.max()) < 0.6


def test_without_curvature_it_is_muon() -> None:
    ends = []
    for optimizer in ("gnprox", "muon"):
        problem = Quadratic(spread(6, 10.0, 1), spread(5, 10.0, 2))
        optimizers = optimizers_for(problem, optimizer=optimizer, lr=0.1)
        for _ in range(3):
            problem.loss().backward()
            optimizers.step(GO)
            optimizers.zero_grad()
        ends.append(problem.parameters["w"].detach())
    assert float((ends[0] - ends[1]).norm() / ends[1].norm()) < 0.02


def test_the_exponent_follows_the_noise_of_the_gradients() -> None:
    """The same gradient again and again is all signal; fresh random ones are all noise."""
    for repeat, low, high in ((True, 0.95, 1.0), (False, 0.5, 0.6)):
        problem = Quadratic(torch.eye(6), torch.eye(5))
        optimizers = optimizers_for(problem, optimizer="gnprox", lr=0.01)
        for step in range(80):
            problem.parameters["w"].grad = draw(6, 5, seed=0 if repeat else step)
            optimizers.step(GO)
        power = float(optimizers.metrics()["gnprox_exponent"])
        assert low <= power <= high


def test_the_decay_is_the_proximal_step() -> None:
    ends = {}
    for decay in (0.0, 0.5):
        problem = Quadratic(torch.eye(6), torch.eye(5))
        problem.parameters["w"].data.copy_(draw(6, 5, seed=9))
        problem.parameters["w"].grad = draw(6, 5)
        optimizers_for(problem, optimizer="gnprox", lr=0.1, weight_decay=decay).step(GO)
        ends[decay] = problem.parameters["w"].detach()
    assert torch.allclose(ends[0.5], ends[0.0] / (1 + 0.1 * 0.5), atol=1e-6)


def test_the_promise_does_not_depend_on_clipping() -> None:
    promises = []
    for clip in (1.0, 0.25):
        problem = Quadratic(spread(6, 10.0, 1), spread(5, 10.0, 2))
        optimizers = optimizers_for(problem, optimizer="gnprox", gn_damping_interval=1, lr=0.01)
        direction, batch = parts(optimizers)
        problem.loss().backward()
        grad = problem.parameters["w"].grad
        assert grad is not None
        grad *= clip
        optimizers.step(GO, torch.tensor(clip))
        promises.append(float(direction.promised([-batch.weights()])))
    assert promises[0] == pytest.approx(promises[1], rel=2e-2)
    assert promises[0] > 0
