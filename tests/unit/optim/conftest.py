"""Parameters of every role, made from a seed, and optimizers over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.optim.build import OptimizerSet, build_optimizers

ROLES = {
    "w": "hidden", "same": "hidden", "fused": ("fused", (3, 2)), "stack": ("experts", (2, 2)), "embed": "embedding",
    "head": "head", "router": "router", "norm": "vector",
}  # fmt: skip
SHAPES = {
    "w": (4, 3), "same": (4, 3), "fused": (5, 3), "stack": (2, 4, 3), "embed": (7, 3), "head": (7, 3), "router": (2, 3),
    "norm": (3,),
}  # fmt: skip
Make = Callable[..., OptimizerSet]


def make_set(
    seed: int = 3, *, shapes: Any = SHAPES, roles: Any = ROLES, device: str = "cpu", **flags: Any
) -> OptimizerSet:
    """Optimizers over one parameter of each role; keyword arguments are flags of any section."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    parameters = {name: Parameter(value.to(device)) for name, value in drawn.items()}
    sections = {}
    for kind in (OptimSection, CurvatureSection, C3OSection):
        own = {name: flags.pop(name) for name in list(flags) if name in kind.__dataclass_fields__}
        sections[kind] = kind(**own)
    train = {"steps": 10, "lr": 1e-2, "adam_lr": 2e-3, "optimizer": "muon"}
    return build_optimizers(parameters, roles, TrainSection(**(train | flags)), *sections.values())


def step(optimizers: OptimizerSet, seed: int, *, skip: bool = False, value: float | None = None) -> None:
    """One step with random gradients of a seed, or with all of them `value`."""
    generator = torch.Generator().manual_seed(seed)
    for p in optimizers.parameters.values():
        grad = torch.randn(p.shape, generator=generator) if value is None else torch.full(p.shape, value)
        p.grad = grad.to(p.device, p.dtype)
    device = next(iter(optimizers.parameters.values())).device
    optimizers.step(torch.full((), float(skip), device=device))


def values(optimizers: OptimizerSet) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in optimizers.parameters.items()}


def load_from(target: OptimizerSet, source: OptimizerSet) -> None:
    """Weights and state of `source`, as a checkpoint holds them."""
    for name, p in target.parameters.items():
        p.data.copy_(source.parameters[name])
    target.load_tensors({name: tensor.cpu().clone() for name, tensor in source.tensors().items()})
    target.load_state_dict(source.state_dict())


def steps_that_never_wait(optimizers: OptimizerSet, clip: torch.Tensor | None = None) -> None:
    """Three steps on a GPU, with gradients in new memory; raises where one of them waits for the device."""
    gradients = {name: torch.ones_like(p) for name, p in optimizers.parameters.items()}
    found_inf = torch.zeros((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for name, p in optimizers.parameters.items():
                p.grad = gradients[name].clone()
            optimizers.set_scale(0.5)
            optimizers.step(found_inf, clip)
            optimizers.metrics()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal bits under equal names."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def make() -> Make:
    """`make_set`."""
    return make_set
