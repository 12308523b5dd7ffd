"""C3O: the steps of a base direction, shared out between logical blocks by their measured credit.

`c3o_credit` holds the mathematics, `c3o_audit` the verdict whether credit may act; this file takes the measurements
inside the optimizer's step. Every `interval` steps the update u is kept. Before the step after it, the feature measures
the bend of the loss along all of them on the new batch; in that step the gradient gives the slopes.
While the verdict is not `active` the allocation is None, and every step is the base optimizer's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sigma.config.c3o import C3OSection
from sigma.optim.blocks import BlockBatch
from sigma.optim.c3o_credit import Credit, CreditSettings, Probe, trust_bounds
from sigma.optim.matrix import RESIDUAL, Eager, Step, Update
from sigma_kernels.matrix_step.codes import decode_residual
from sigma_kernels.matrix_step.reference import store

PROBE, PROBE_STEP, PROBE_RATE, PROBE_SHARE = "probe", "probe_step", "probe_rate", "probe_share"
GUARD_RECOVERY = 2 ** (1 / 500)
"""Factor of a step with which the divergence guard lets go again: 500 steps for each halving."""
_TINY = 1e-30


@dataclass(frozen=True)
class Block:
    """Matrix `index` of a batch; `number` counts over all batches."""

    batch: BlockBatch
    index: int
    number: int


class C3O:
    """The allocation of a `MatrixOptimizer`. Its auditor sets `active` (credit acts) and `awake` (steps are kept)."""

    def __init__(self, c3o: C3OSection) -> None:
        self.interval = c3o.c3o_probe_interval
        self.settings = CreditSettings(
            ema=c3o.c3o_credit_ema_beta,
            gain=c3o.c3o_credit_gain,
            scale_min=c3o.c3o_block_scale_min,
            scale_max=c3o.c3o_block_scale_max,
            trust_radius=c3o.c3o_trust_radius,
        )
        self.active, self.awake = False, True
        self.batches: list[BlockBatch] = []
        self.starts: list[int] = []
        self.blocks = 0
        self.guard, self.rises = torch.ones(()), torch.zeros(())
        self.changed = torch.zeros((), dtype=torch.int64)
        """1 when the newest step of a block differed from the base's; overwritten in every step, like the two above."""
        self._numbers: dict[int, int] = {}
        self._credit: Credit | None = None
        self._slopes: list[Tensor] = []
        self._bends: Tensor | None = None
        self._saved: Mapping[str, Any] = {}  # of a checkpoint, until the blocks are known

    def prepare(self, batch: BlockBatch) -> None:
        """The slots of a probe: the update kept, its step, rate and share."""
        batch.new_state(PROBE, (batch.rows, batch.columns), torch.bfloat16)
        for slot in (PROBE_RATE, PROBE_SHARE):
            batch.new_state(slot, (), torch.float32)
        batch.new_state(PROBE_STEP, (), torch.int64)
        self.guard, self.rises = self.guard.to(batch.device), self.rises.to(batch.device)
        self.changed = self.changed.to(batch.device)
        self._numbers[id(batch)] = len(self.batches)
        self.batches.append(batch)
        self.starts.append(self.blocks)
        self.blocks += batch.count

    @property
    def credit(self) -> Credit:
        """The averages of all blocks; ask once the optimizer has its state."""
        if self._credit is None:
            self._credit = Credit(self.blocks, self.settings, self.batches[0].device)
            self.load_state_dict(self._saved)
        return self._credit

    def begin(self, found_inf: Tensor | None) -> None:
        """The guard lets go a little."""
        store(self.guard, (self.guard * GUARD_RECOVERY).clamp(max=1), found_inf)
        different = (self.credit.log_scale != 0).any() | (self.guard != 1)
        taken = different if found_inf is None else different & (found_inf == 0)
        self.changed.copy_(taken.to(torch.int64) * self.active)

    def __call__(self, batch: BlockBatch, update: Update, step: Step) -> Tensor | None:
        """The scale of each block of `batch`, or None; on the way, what this step has to measure."""
        number = self._numbers[id(batch)]
        own = slice(self.starts[number], self.starts[number] + batch.count)
        shares = self.credit.scale()[own] * self.guard if self.active else None
        if self._keeps(step.number):
            self._keep(batch, update, shares, step)
        elif self._bends is not None:
            self._measure(batch, number, step)
        return shares

    def phase(self, number: int) -> Hashable:
        """Whether credit acts. Its own steps change what the host holds: they are eager."""
        if self._keeps(number) or self._bends is not None:
            return Eager("credit keeps or measures an update in this step")
        return self.active

    def _keeps(self, number: int) -> bool:
        return number % self.interval == 0 and self.awake

    def _keep(self, batch: BlockBatch, update: Update, shares: Tensor | None, step: Step) -> None:
        share = torch.ones_like(batch.state[PROBE_SHARE]) if shares is None else shares
        moving = (step.active_K != 0)[:, None, None]
        step.store(batch.state[PROBE], update.dense() * moving)
        step.store(batch.state[PROBE_SHARE], share)
        step.store(batch.state[PROBE_RATE], batch.lr.float() * share)
        step.store(batch.state[PROBE_STEP], torch.full_like(batch.state[PROBE_STEP], step.number))

    def measures(self, step: int) -> bool:
        """Whether `step` comes right after one whose updates were kept."""
        return step % self.interval == 1 and step > self.interval

    @torch.no_grad()
    def slopes(self) -> Tensor:
        """<g, u> `[blocks]` of the gradients that the parameters hold now and the updates that were kept."""
        return torch.cat([_inner(b.gradients(), b.state[PROBE].float()) for b in self.batches])

    def note_bends(self, bends: Tensor) -> None:
        """q - a `[blocks]`, measured on the batch of the step that comes now."""
        self._bends = bends

    def _measure(self, batch: BlockBatch, number: int, step: Step) -> None:
        assert self._bends is not None
        if number == 0:
            self._slopes = []
        self._slopes.append(_inner(step.unclipped(batch.gradients()), batch.state[PROBE].float()))
        if number + 1 < len(self.batches):
            return
        fresh = (self._all(PROBE_STEP) == step.number - 1).all()
        valid = fresh if step.found_inf is None else fresh & (step.found_inf == 0)
        norms = self._update_norms()
        rate, share = self._all(PROBE_RATE), self._all(PROBE_SHARE)
        probe = Probe(torch.cat(self._slopes), self._bends, rate, share, norms.square())
        self.credit.observe(probe, *self._bounds(norms), valid)
        self._bends = None

    def _update_norms(self) -> Tensor:
        norms = [torch.linalg.vector_norm(b.state[PROBE], dim=(1, 2), dtype=torch.float32) for b in self.batches]
        return torch.cat(norms)

    def _bounds(self, update_norm: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.cat([torch.linalg.vector_norm(b.weights(), dim=(1, 2)) for b in self.batches])
        rows = torch.cat([torch.full((b.count,), float(b.rows), device=b.device) for b in self.batches])
        lr = torch.cat([b.lr.float().expand(b.count) for b in self.batches])
        return trust_bounds(weights, update_norm, rows, lr, self.settings.trust_radius)

    def _all(self, slot: str) -> Tensor:
        return torch.cat([b.state[slot] for b in self.batches])

    def choose(self, count: int, generator: torch.Generator) -> list[Block]:
        """Different blocks at random, `count` of them or all."""
        numbers = torch.randperm(self.blocks, generator=generator)[:count].tolist()
        return [self._block(number) for number in numbers]

    def _block(self, number: int) -> Block:
        index = max(i for i, start in enumerate(self.starts) if start <= number)
        return Block(self.batches[index], number - self.starts[index], number)

    @contextmanager
    def before_probe(self, block: Block | None = None) -> Iterator[None]:
        """The weights as if `block`, or every block, had not taken the step that the newest probe kept."""
        changes = list(self._before(block))
        kept = [(view, view.clone()) for view, _ in changes]
        with torch.no_grad():
            for view, value in changes:
                view.copy_(value)
            try:
                yield
            finally:
                for view, value in kept:
                    view.copy_(value)

    def _before(self, block: Block | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of weights, and what stood there before the kept step."""
        for batch in self.batches if block is None else [block.batch]:
            for part in batch.parts:
                view, own = part.of(part.parameter.detach()), slice(part.start, part.start + part.count)
                if block is not None:
                    if not own.start <= block.index < own.stop:
                        continue
                    view, own = view[block.index - own.start][None], slice(block.index, block.index + 1)
                residual = batch.state.get(RESIDUAL)
                now = view.float() if residual is None else decode_residual(view, residual[own])
                step = batch.state[PROBE_RATE][own, None, None] * batch.state[PROBE][own]
                yield view, (now + step).to(view.dtype)

    def probed_at(self) -> int:
        """The step whose update the probe holds. Waits for the device."""
        return int(self.batches[0].state[PROBE_STEP][0]) if self.batches else 0

    def predicted(self, blocks: Sequence[Block]) -> tuple[Tensor, Tensor]:
        """(loss that taking the probed step of each block back would cost, energy of that step), on the device."""
        numbers = torch.tensor([b.number for b in blocks], device=self.credit.rate.device)
        rate = self._all(PROBE_RATE)
        return self.credit.predicted_loss(rate)[numbers], (rate * self._update_norms()).square()[numbers]

    def note_reduction(self, reduction: Tensor) -> None:
        """Divergence guard: halve all steps when the loss of the very batch that was stepped on rose twice in a row."""
        rose = ~(reduction >= 0)
        rises = torch.where(rose, self.rises + 1, 0.0)
        self.guard.copy_(torch.where(rises >= 2, self.guard / 2, self.guard))
        self.rises.copy_(torch.where(rises >= 2, 0.0, rises))

    def metrics(self) -> dict[str, Tensor | float]:
        """Nothing: the feature c3o_credit reports."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Averages, guard and whether credit acts, as JSON. Waits for the device."""
        if not self.blocks:
            return dict(self._saved)
        guard = {"guard": float(self.guard), "rises": float(self.rises)}
        return {"credit": self.credit.state_dict(), "active": self.active, **guard}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; before the first step it waits for the blocks."""
        self._saved = {} if self.blocks else state
        if not state:
            return
        self.active = state["active"]
        self.guard.fill_(state["guard"])
        self.rises.fill_(state["rises"])
        if self.blocks:
            self.credit.load_state_dict(state["credit"])


def _inner(a_KMN: Tensor, b_KMN: Tensor) -> Tensor:
    """Inner products `[K]`."""
    return (a_KMN * b_KMN).sum((1, 2))
