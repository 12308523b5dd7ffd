"""The elementwise halves of a matrix optimizer's step, against the reference: % of copy bandwidth at 100 M and 1 G.

`forward` is the momentum step (gradient, momentum in and out, what is orthogonalised), `backward` the weight step
(direction, weights in and out). `sigma-graph` repeats it from a CUDA graph, as the trainer does: a step of small
matrices takes the host longer than the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from floors import Work
from graph import captured
from registry import Case, benchmark
from torch import Tensor

from sigma_kernels import dispatch
from sigma_kernels.matrix_step.blocks import BlockList
from sigma_kernels.matrix_step.codes import blocks_of
from sigma_kernels.matrix_step.op import momentum_step, weight_step

# (stacks of eight, rows, columns)
SHAPES = [(48, 512, 512), (64, 1536, 1152)]
# momentum, weights: bytes of an element of each, of the gradient, and of the residual
STORAGE = {"fp32": (4, 4, 4, 0), "bf16 momentum": (2, 4, 4, 0), "int8 momentum, bf16+8 weights": (1, 2, 2, 1)}
EXPERTS = 8
HALF = 2


@dataclass
class Tensors:
    """A batch of matrices in stacks of experts."""

    blocks: BlockList
    weights: list[Tensor]
    gradients: list[Tensor | None]
    momentum: Tensor
    scale: Tensor | None
    residual: Tensor | None
    direction: Tensor
    rows: Tensor
    rate: Tensor
    active: Tensor
    found_inf: Tensor


def make(stacks: int, rows: int, columns: int, storage: str) -> Tensors:
    """Random gradients; the rest is constant."""
    momentum_bytes, weight_bytes, _, residual_bytes = STORAGE[storage]
    count, dtype = stacks * EXPERTS, {2: torch.bfloat16, 4: torch.float32}[weight_bytes]
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (EXPERTS, rows, columns)
    weights = [torch.full(shape, 0.5, dtype=dtype, device="cuda") for _ in range(stacks)]
    gradients: list[Tensor | None] = [
        torch.randn(shape, device="cuda", generator=generator).to(dtype) for _ in range(stacks)
    ]
    whole = (count, rows, columns)
    kinds = {1: torch.int8, 2: torch.bfloat16, 4: torch.float32}
    return Tensors(
        BlockList(weights, [(0, rows)] * stacks),
        weights,
        gradients,
        torch.ones(whole, dtype=kinds[momentum_bytes], device="cuda"),
        torch.ones(count, blocks_of(rows * columns), device="cuda") if momentum_bytes == 1 else None,
        torch.zeros(whole, dtype=torch.int8, device="cuda") if residual_bytes else None,
        torch.ones(whole, dtype=torch.float16, device="cuda"),
        torch.ones(count, rows, 1, device="cuda"),
        torch.full((count,), 1e-6, device="cuda"),
        torch.ones(count, dtype=torch.int32, device="cuda"),
        torch.zeros((), device="cuda"),
    )


def momentum(t: Tensors) -> object:
    """Nesterov momentum, as Muon's."""
    return momentum_step(t.blocks, t.gradients, t.momentum, t.scale, beta=0.95, found_inf=t.found_inf)


def weight(t: Tensors) -> object:
    """NorMuon's weight step: a scale for each row, cautious decay."""
    return weight_step(
        t.blocks, t.weights, t.direction, t.rate, 1 - t.rate, active_K=t.active, scale=t.rows,
        residual_KMN=t.residual, decay="cautious", found_inf=t.found_inf,
    )  # fmt: skip


# A context manager made from a generator is a decorator too, which opens it anew for each call.
PROVIDERS = {"sigma": lambda step: step, "sigma-graph": captured, "eager": dispatch.using("reference")}
STEPS: dict[str, Callable[[Tensors], object]] = {"forward": momentum, "backward": weight}


@dataclass
class Run:
    """What a case runs; its tensors exist from `setup` on."""

    provider: Callable[[Callable[[], object]], Callable[[], object]]
    step: Callable[[Tensors], object]
    make: Callable[[], Tensors]
    _held: list[Any] = field(default_factory=list)

    def setup(self) -> None:
        """Make the tensors."""
        tensors = self.make()
        self._held = [self.provider(lambda: self.step(tensors))]

    def __call__(self) -> object:
        return self._held[0]()


def bytes_of(direction: str, storage: str) -> int:
    """Bytes of an element that a step must move."""
    momentum_bytes, weight_bytes, grad_bytes, residual_bytes = STORAGE[storage]
    if direction == "forward":
        return grad_bytes + 2 * momentum_bytes + HALF
    return HALF + 2 * (weight_bytes + residual_bytes)


@benchmark("matrix_step")
def cases() -> Iterator[list[Case]]:
    """One batch of one shape; a provider at a time, because a batch of 1 G takes 20 GB."""
    for stacks, rows, columns in SHAPES:
        for storage in STORAGE:
            for direction, step in STEPS.items():
                moved = stacks * EXPERTS * rows * columns * bytes_of(direction, storage)
                for name, provider in PROVIDERS.items():
                    run = Run(provider, step, lambda s=(stacks, rows, columns, storage): make(*s))
                    yield [
                        Case(
                            shape=f"{stacks * EXPERTS}x{rows}x{columns}",
                            dtype=storage,
                            provider=name,
                            direction=direction,
                            bytes=moved,
                            run=run,
                            work=(Work(moved, 0),),
                            setup=run.setup,
                        )
                    ]
