"""One optimizer step over all parameters of a preset: ours, eager and from CUDA graphs, and torch's own optimizers.

Ours is what the trainer calls: gradients lie elsewhere in every step, and with `-graph` the matrix optimizer decides by
itself to replay its step, while AdamW stays eager. `adamw-graph` alone is captured here, as a floor for launches.

The floor is what a step with orthogonalised matrices must move (gradient, momentum and weights once, what is
orthogonalised written and read) and multiply (Polar Express, symmetric products at half their cost). torch's AdamW is
the fused one over the same parameters; torch's Muon gets every logical matrix as a parameter of its own, and AdamW the
rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from floors import Work, orthogonalise_flops
from graph import captured
from optim_shapes import HIDDEN, SHAPES, matrices_of, named_shapes, parameters_of
from registry import Case, benchmark
from torch.nn import Parameter

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.optim.build import build_optimizers

Step = Callable[[], object]
LEAN = OptimSection(momentum_dtype="int8", weight_dtype="bf16_residual")


@dataclass(frozen=True)
class Provider:
    """An optimizer of ours, or torch's; `graph` is `--optim-graph`, and for AdamW a step captured here."""

    optimizer: str
    graph: bool = False
    optim: OptimSection = field(default_factory=OptimSection)


PROVIDERS = {
    "normuon": Provider("normuon"),
    "normuon-graph": Provider("normuon", graph=True),
    "normuon-lean-graph": Provider("normuon", graph=True, optim=LEAN),
    "muon-graph": Provider("muon", graph=True),
    "adamuon-graph": Provider("adamuon", graph=True),
    "normuon-blocks-graph": Provider("normuon", graph=True, optim=OptimSection(muon_block_period=1 << 30)),
    "adamw-graph": Provider("adamw", graph=True),
    "torch-adamw": Provider("torch-adamw"),
    "torch-muon": Provider("torch-muon"),
}


def make_parameters(preset: str, *, apart: bool) -> tuple[dict[str, Parameter], dict[str, Any]]:
    """(parameters with gradients, roles); `apart` makes each logical matrix a parameter of its own."""
    generator = torch.Generator("cuda").manual_seed(0)
    parameters, roles = {}, {}
    for whole, role, shape in named_shapes(preset):
        name, splits = (role, ()) if isinstance(role, str) else role
        shapes = [shape]
        if apart and name in HIDDEN:
            experts = shape[0] if len(shape) == 3 else 1
            shapes = [(rows, shape[-1]) for rows in splits or (shape[-2],)] * experts
        for part, own in enumerate(shapes):
            key = f"{whole}.{part}"
            parameters[key] = Parameter(torch.randn(own, device="cuda", generator=generator) * 0.02)
            roles[key] = name if apart else role
    return parameters, roles


def fill_gradients(parameters: dict[str, Parameter], seed: int = 1) -> None:
    """Random gradients in the type of each parameter."""
    generator = torch.Generator("cuda").manual_seed(seed)
    for p in parameters.values():
        p.grad = (torch.randn(p.shape, device="cuda", generator=generator) * 1e-3).to(p.dtype)


def ours(provider: Provider, preset: str) -> Step:
    """A step of `OptimizerSet`; its gradients lie in two places in turn, because backward puts them into new memory."""
    parameters, roles = make_parameters(preset, apart=False)
    train = TrainSection(lr=1e-3, adam_lr=1e-3, optimizer=provider.optimizer)  # pyright: ignore[reportArgumentType]
    optim = replace(provider.optim, optim_graph=provider.graph)
    optimizers = build_optimizers(parameters, roles, train, optim, CurvatureSection(), C3OSection())
    places = []
    for seed in (1, 2):
        fill_gradients(parameters, seed)
        places.append([p.grad for p in parameters.values()])
    found_inf, turn = torch.zeros((), device="cuda"), itertools.cycle(places)

    def step() -> None:
        for p, gradient in zip(parameters.values(), next(turn), strict=True):
            p.grad = gradient
        optimizers.step(found_inf)

    return step


def torchs(provider: Provider, preset: str) -> Step:
    """torch's fused AdamW, or its Muon for the matrices and AdamW for the rest."""
    parameters, roles = make_parameters(preset, apart=True)
    fill_gradients(parameters)
    muon = [p for name, p in parameters.items() if roles[name] in HIDDEN and provider.optimizer == "torch-muon"]
    taken = {id(p) for p in muon}
    rest = [p for p in parameters.values() if id(p) not in taken]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, fused=True)]
    if muon:
        optimizers.append(torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw"))
    return lambda: [optimizer.step() for optimizer in optimizers]


@dataclass
class Run:
    """What a case runs; parameters and state exist from `setup` on."""

    provider: Provider
    preset: str
    _held: list[Any] = field(default_factory=list)

    def setup(self) -> None:
        """Make everything and take the steps that make state, kernels and graphs."""
        make = torchs if self.provider.optimizer.startswith("torch") else ours
        step = make(self.provider, self.preset)
        for _ in range(3):
            step()
        adamw = self.provider.optimizer == "adamw"
        self._held = [captured(step) if self.provider.graph and adamw else step]

    def __call__(self) -> object:
        return self._held[0]()


def bytes_of(preset: str, provider: Provider) -> int:
    """Gradient read, momentum and weights read and written, what is orthogonalised written and read; AdamW's rest."""
    matrices = sum(count * rows * columns for (rows, columns), count in matrices_of(preset).items())
    rest = parameters_of(preset) - matrices
    adamw = 4 * 7  # gradient, two moments and the weights
    if "adamw" in provider.optimizer:
        return adamw * (matrices + rest)
    lean = provider.optim.weight_dtype != "fp32"
    element = 2 + 2 * 1 + 2 * 3 if lean else 4 + 2 * 4 + 2 * 4
    return matrices * (element + 4) + adamw * rest


def work_of(preset: str, provider: Provider) -> tuple[Work, ...]:
    """The memory traffic, then the products."""
    moved = Work(bytes_of(preset, provider), 0)
    if "adamw" in provider.optimizer:
        return (moved,)
    shapes = matrices_of(preset)
    return moved, Work(0, sum(count * orthogonalise_flops(*shape) for shape, count in shapes.items()))


@benchmark("optim_step")
def cases() -> Iterator[list[Case]]:
    """A provider at a time: at 1.46 G each holds 23 GB."""
    for preset in SHAPES:
        for name, provider in PROVIDERS.items():
            run = Run(provider, preset)
            yield [
                Case(
                    shape=f"{preset} {parameters_of(preset) / 1e6:.0f}M",
                    dtype="bf16+8, int8" if provider.optim is LEAN else "fp32",
                    provider=name,
                    direction="step",
                    bytes=bytes_of(preset, provider),
                    run=run,
                    work=work_of(preset, provider),
                    setup=run.setup,
                )
            ]
