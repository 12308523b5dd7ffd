"""The step that all matrix optimizers share: momentum before the direction, rate, decay and weights after it.

A matrix optimizer is a `Direction`: it turns the averaged gradients `[K, m, n]` of a batch into directions of one root
mean square. Everything else travels around it: momentum and its storage, learning rate and weight decay, the master
copy of the weights, state slots, blocks without a gradient, and `found_inf`. An `Allocation` may multiply the learning
rate of each block. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.config.optim import OptimSection
from sigma.core.errors import SigmaError
from sigma.optim.blocks import BlockBatch, make_batches
from sigma.optim.routing import Route
from sigma_kernels.matrix_step import op, reference
from sigma_kernels.matrix_step.codes import blocks_of, decode_residual

UPDATE_RMS = 0.2  # of an AdamW update, which all directions are scaled to (arXiv:2502.16982, 2.2)
MOMENTUM, MOMENTUM_SCALE, RESIDUAL = "momentum_buffer", "momentum_scale", "residual"
BESIDE = 1 / 8  # of the largest batch: what is smaller leaves most of a GPU idle, and takes little memory
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Step:
    """What a direction may know of the step: its number from 1, counted on the host; the rest is on the device."""

    number: int
    found_inf: Tensor | None
    active_K: Tensor  # int32, 0 for a block whose gradient is all zero
    clip: Tensor | None = None  # what clipping multiplied the gradients of this step with; None for 1

    def unclipped(self, gradients_KMN: Tensor) -> Tensor:
        """The gradients as they were before clipping: slopes of the loss, comparable between steps."""
        return gradients_KMN if self.clip is None else gradients_KMN / self.clip

    def store(self, target: Tensor, value: Tensor) -> None:
        """Overwrite state, unless this step is skipped (`found_inf`)."""
        reference.store(target, value, self.found_inf)

    def store_active(self, target: Tensor, value: Tensor) -> None:
        """`store` for a stack `[K, ...]` that leaves the blocks without a gradient as they are."""
        active = self.active_K.reshape(-1, *[1] * (target.ndim - 1)) != 0
        reference.store(target, torch.where(active, value.to(target.dtype), target), self.found_inf)


@dataclass(frozen=True)
class Eager:
    """Why a step cannot be repeated from a CUDA graph: the answer of a `phase`."""

    reason: str


@dataclass(frozen=True)
class Update:
    """The step of a batch before rate and decay: factor * scale * direction, with the root mean square 0.2.

    `factor` is known on the host; `scale` is an fp32 stack `[K, 1, 1]`, `[K, m, 1]` or `[K, 1, n]`, or None for 1.
    """

    direction_KMN: Tensor
    factor: float
    scale: Tensor | None = None

    def dense(self) -> Tensor:
        """The whole of it in fp32."""
        plain = self.direction_KMN.float() * self.factor
        return plain if self.scale is None else plain * self.scale


class Direction(Protocol):
    """A matrix optimizer: one file, one row in `build.DIRECTIONS`.

    `form` says what it is given: `nesterov`, `average`, or the `sign` of the average; `dtype` in which type; `prox`
    whether the decay is applied as a proximal step.
    """

    form: reference.Form
    dtype: torch.dtype
    prox: bool

    def prepare(self, batch: BlockBatch) -> None:
        """Make the state slots (`batch.new_state`); called before the first step, and before a checkpoint is read."""
        ...

    def __call__(self, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
        """The update; state is changed through `step.store` only. Raw gradients: `batch.gradients()`."""
        ...

    def phase(self, number: int) -> Hashable:
        """What the host decides in step `number`: equal answers, equal launches. `Eager` where state moves or waits."""
        ...

    def metrics(self) -> dict[str, Tensor | float]:
        """Values for metrics.jsonl; device scalars are not read here."""
        ...


class Allocation(Protocol):
    """Shares the update out between blocks, around any direction."""

    def prepare(self, batch: BlockBatch) -> None:
        """Make the state slots."""
        ...

    def begin(self, found_inf: Tensor | None) -> None:
        """What a step does once, before its first batch: the batches of a step may run beside each other."""
        ...

    def __call__(self, batch: BlockBatch, update: Update, step: Step) -> Tensor | None:
        """fp32 `[K]` that multiplies the learning rate of each block, or None for 1. Weights are those before."""
        ...

    def phase(self, number: int) -> Hashable:
        """As `Direction.phase`."""
        ...

    def metrics(self) -> dict[str, Tensor | float]:
        """Values for metrics.jsonl."""
        ...


Branch = Callable[[], None]
RunBeside = Callable[[Sequence[Branch]], None]


def rms_factor(rows: int, columns: int) -> float:
    """What gives an orthogonal matrix the root mean square 0.2 (arXiv:2502.16982, eq. 4)."""
    return UPDATE_RMS * math.sqrt(max(rows, columns))


class MatrixOptimizer:
    """One direction over all batches of logical matrices; `steps` counts updates, skipped ones too."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        routes: Sequence[Route],
        direction: Direction,
        optim: OptimSection,
        allocation: Allocation | None = None,
    ) -> None:
        self.direction, self.allocation = direction, allocation
        self.found_inf: Tensor | None = None
        self.clip: Tensor | None = None
        self.steps = 0
        self._optim = optim
        self._started = False
        self._parameters = [parameters[r.name] for r in routes]
        if optim.weight_dtype == "bf16_residual":
            # The part below bf16 is dropped once, here: the residual begins at zero.
            for parameter in self._parameters:
                parameter.data = parameter.data.to(torch.bfloat16)
        self.batches = make_batches(dict(parameters), routes)

    def set_scale(self, scale: float) -> None:
        """Set every learning rate to `scale` times its peak."""
        for batch in self.batches:
            batch.lr.fill_(scale * batch.peak_lr)

    @torch.no_grad()
    def step(self) -> None:
        """One update of everything, or of nothing where the device scalar `found_inf` is 1."""
        self.begin()
        self.update()

    def begin(self) -> None:
        """The host's part of a step: its number, and state if there is none yet."""
        self.prepare()
        self.steps += 1

    @torch.no_grad()
    def update(self, run_beside: RunBeside | None = None) -> None:
        """The device's part of the step that `begin` began: nothing but launches, in the same order in equal phases.

        `run_beside` gets those of large batches and those of small ones, which do not depend on each other unless the
        phase is eager.
        """
        if self.allocation is not None:
            self.allocation.begin(self.found_inf)
        if run_beside is None:
            self._update_all(self.batches)
            return
        sizes = [batch.count * batch.rows * batch.columns for batch in self.batches]
        small = [size <= BESIDE * max(sizes) for size in sizes]
        parts = ([b for b, s in zip(self.batches, small, strict=True) if s is kind] for kind in (False, True))
        run_beside([partial(self._update_all, part) for part in parts if part])

    def _update_all(self, batches: Sequence[BlockBatch]) -> None:
        for batch in batches:
            self._update(batch)

    def phase(self) -> tuple[Hashable, ...] | Eager:
        """What the host decides in the step that `begin` began."""
        parts = (self.direction, self.allocation)
        phases = tuple(part.phase(self.steps) for part in parts if part is not None)
        return next((phase for phase in phases if isinstance(phase, Eager)), phases)

    def prepare(self) -> None:
        """Make all state, if it is not there yet."""
        if self._started:
            return
        self._started = True
        for batch in self.batches:
            dtype, shape = DTYPES[self._optim.momentum_dtype], (batch.rows, batch.columns)
            batch.new_state(MOMENTUM, shape, dtype)
            if dtype == torch.int8:
                batch.new_state(MOMENTUM_SCALE, (blocks_of(math.prod(shape)),), torch.float32)
            if self._optim.weight_dtype == "bf16_residual":
                batch.new_state(RESIDUAL, shape, torch.int8)
            self.direction.prepare(batch)
            if self.allocation is not None:
                self.allocation.prepare(batch)

    def _update(self, batch: BlockBatch) -> None:
        parameters = [part.parameter for part in batch.parts]
        averaged, active_K = op.momentum_step(
            batch.blocks,
            [p.grad for p in parameters],
            batch.state[MOMENTUM],
            batch.state.get(MOMENTUM_SCALE),
            beta=self._optim.muon_momentum,
            form=self.direction.form,
            found_inf=self.found_inf,
            dtype=self.direction.dtype,
        )
        step = Step(self.steps, self.found_inf, active_K, self.clip)
        update = self.direction(batch, averaged, step)
        shares = self.allocation(batch, update, step) if self.allocation is not None else None
        rate_K, decay_K = self._rates(batch, update, shares)
        cautious = "cautious" if self._optim.cautious_weight_decay else ""
        op.weight_step(
            batch.blocks,
            [p.detach() for p in parameters],
            update.direction_KMN,
            rate_K,
            decay_K,
            active_K=active_K,
            scale=update.scale,
            residual_KMN=batch.state.get(RESIDUAL),
            decay=DECAYS[bool(cautious), self.direction.prox],
            found_inf=self.found_inf,
        )

    def _rates(self, batch: BlockBatch, update: Update, shares: Tensor | None) -> tuple[Tensor, Tensor]:
        """fp32 `[K]` each: what the direction and what the weights are multiplied with."""
        rate = (batch.lr * update.factor).float().expand(batch.count)
        shrink = batch.lr * batch.weight_decay
        decay = 1 / (1 + shrink) if self.direction.prox else 1 - shrink
        return rate if shares is None else rate * shares, decay.float().expand(batch.count)

    def master_weights(self, batch: BlockBatch) -> Tensor:
        """The weights `[K, m, n]` of a batch in fp32 (a copy), with their residual."""
        residual = batch.state.get(RESIDUAL)
        return batch.weights() if residual is None else decode_residual(batch.weights().bfloat16(), residual)

    def tensors(self) -> dict[str, Tensor]:
        """State (views) under `<parameter>|<slot>`; empty before the first step."""
        return {name: view for batch in self.batches for name, view in batch.named_state()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned. Raises SigmaError when a tensor is missing, unknown or of another kind."""
        if not tensors and not self._started:
            return
        self.prepare()
        own = self.tensors()
        for name in sorted(own.keys() | tensors.keys()):
            mine, given = own.get(name), tensors.get(name)
            if mine is None or given is None or mine.shape != given.shape or mine.dtype != given.dtype:
                raise SigmaError(
                    f"the checkpoint's optimizer state {name!r} is {_said(given)}, this run's {_said(mine)}; continue"
                    " the run with the options it was started with, or use another --output-dir"
                )
        for name, mine in own.items():
            mine.copy_(tensors[name])

    def metrics(self) -> dict[str, Tensor | float]:
        """What direction and allocation report."""
        return self.direction.metrics() | (self.allocation.metrics() if self.allocation is not None else {})


DECAYS: dict[tuple[bool, bool], reference.Decay] = {
    (False, False): "plain",
    (True, False): "cautious",
    (False, True): "prox",
    (True, True): "cautious_prox",
}
MakeDirection = Callable[[OptimSection], Direction]


def _said(tensor: Tensor | None) -> str:
    return "not there" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
