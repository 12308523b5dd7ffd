"""Planted problems: a small regression model with stochastic batches, and a loop that trains it with any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.features.c3o_credit import C3OCredit
from sigma.optim.blocks import BlockBatch
from sigma.optim.build import OptimizerSet, build_optimizers
from sigma.optim.c3o import C3O
from sigma.optim.matrix import Step, Update
from sigma.optim.schedule import learning_rate_scale
from sigma.train.feature import Context, StepState

WIDTH, LAYERS, ROWS = 16, 6, 128
GO = torch.tensor(0.0)


class Student:
    """A residual tanh network that learns another one of the same form from noisy outputs.

    Odd layers have the role `fused` (without splits), even ones `hidden`: so that each half can get its own rate.
    """

    def __init__(self, seed: int = 0, noise: float = 0.2) -> None:
        self.noise = noise
        generator = torch.Generator().manual_seed(seed)
        draw = lambda: torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5  # noqa: E731
        self.teacher = [draw() for _ in range(LAYERS)]
        self.parameters = {f"layers.{i}.weight": Parameter(t + draw()) for i, t in enumerate(self.teacher)}
        self.roles = {name: ("fused", ()) if i % 2 else "hidden" for i, name in enumerate(self.parameters)}

    def batch(self, seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, WIDTH, generator=generator)
        return x, forward(self.teacher, x) + self.noise * torch.randn(rows, WIDTH, generator=generator)

    def loss(self, batch: tuple[Tensor, Tensor], rows: slice = slice(None)) -> Tensor:
        x, y = batch[0][rows], batch[1][rows]
        return (forward(list(self.parameters.values()), x) - y).square().mean()

    def excess(self) -> float:
        """Error without the noise, over many inputs."""
        x = torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(999))
        with torch.no_grad():
            return float((forward(list(self.parameters.values()), x) - forward(self.teacher, x)).square().mean())


def forward(weights: list[Any], x: Tensor) -> Tensor:
    for weight in weights:
        x = x + torch.tanh(x @ weight.T)
    return x


class RandomShares:
    """A placebo: shares that are random and stay, with the spread of a real allocation and the same total."""

    def __init__(self, log_scales: Tensor, seed: int) -> None:
        order = torch.randperm(len(log_scales), generator=torch.Generator().manual_seed(seed))
        self.shares, self.starts, self.blocks = log_scales[order].exp(), {}, 0

    def prepare(self, batch: BlockBatch) -> None:
        self.starts[id(batch)], self.blocks = self.blocks, self.blocks + batch.count

    def begin(self, found_inf: Tensor | None) -> None:
        pass

    def __call__(self, batch: BlockBatch, update: Update, step: Step) -> Tensor:
        start = self.starts[id(batch)]
        return self.shares[start : start + batch.count]

    def phase(self, number: int) -> None:
        return None

    def metrics(self) -> dict[str, Tensor | float]:
        return {}


def optimizers_for(problem: Any, **flags: Any) -> OptimizerSet:
    """Optimizers over the parameters of a problem; keyword arguments are flags of any section."""
    sections = {}
    for kind in (OptimSection, CurvatureSection, C3OSection):
        own = {name: flags.pop(name) for name in list(flags) if name in kind.__dataclass_fields__}
        sections[kind] = kind(**own)
    train = TrainSection(**({"steps": 100, "lr": 1e-2, "adam_lr": 1e-2, "weight_decay": 0.0} | flags))
    return build_optimizers(problem.parameters, problem.roles, train, *sections.values())


def credit_of(problem: Any, optimizers: OptimizerSet, interval: int, blocks: int = 4) -> C3OCredit:
    """The feature that audits, over the loss of the problem."""
    assert optimizers.matrix is not None
    allocation = optimizers.matrix.allocation
    assert isinstance(allocation, C3O)
    feature = C3OCredit(allocation, interval=interval, blocks=blocks, rows=ROWS, seed=0)
    model = SimpleNamespace(parameters=problem.parameters.values)
    feature.setup(Context(model, problem.loss, nullcontext, problem.loss))
    return feature


def train(
    problem: Any,
    optimizers: OptimizerSet,
    steps: int,
    feature: C3OCredit | None = None,
    *,
    first: int = 1,
    decay: float = 0.4,
    each: Callable[[int], None] = lambda step: None,
) -> None:
    """Steps `first` to `steps` on fresh batches, with a decay to zero over the last share of all of them."""
    for step in range(first, steps + 1):
        s = StepState(step, problem.batch(step))
        if feature is not None:
            feature.on_batch(s)
        optimizers.set_scale(learning_rate_scale(step, steps, 0.05, decay))
        problem.loss(s.batch).backward()
        optimizers.step(GO)
        optimizers.zero_grad()
        if feature is not None:
            feature.after_step(s)
        each(step)
