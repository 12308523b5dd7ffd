"""The plug of C3O credit: audits whether credit predicts, lets it act only then, and guards against divergence.

A probe reads the slopes of all blocks on a batch that their last step has not seen, with and without that step.
An audit takes the last step of a few blocks back, one block at a time, and reads what that costs on a batch that the
step has not seen: a true counterfactual. Credit had said what it would cost.
While the verdict is `inactive` both happen in one audit interval of `REST` only, so that being wrong costs little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sigma.optim.c3o import C3O
from sigma.optim.c3o_audit import AuditLog
from sigma.train.feature import Context, Feature, StepState, Work

GUARD_INTERVAL = 64
REST = 4
"""Audit intervals, of which an inactive credit is measured in the last."""
VERDICTS = {"undecided": 0.0, "active": 1.0, "inactive": -1.0}


class C3OCredit(Feature):
    """`calls` are optimizer steps under credit; a step is `effective` when the shares differed from the base's.

    Credit that audits itself inactive works on (it measures, more seldom) and changes nothing; the column `verdict`
    says so. `rows` are those of a forward pass; a probe takes a quarter of them.
    """

    name = "c3o_credit"

    def __init__(self, c3o: C3O, *, interval: int, blocks: int, rows: int, seed: int) -> None:
        self.c3o, self.audits = c3o, AuditLog()
        self._interval, self._blocks, self._rows, self._seed = interval, blocks, slice(0, rows), seed
        self._probe_rows = slice(0, max(1, rows // 4))
        self._before: Tensor | None = None

    def setup(self, ctx: Context) -> None:
        """Keep what the probes need."""
        self._ctx = ctx

    def on_batch(self, s: StepState) -> None:
        """Probe and audit the step before this one on this batch; remember its loss where the guard is due."""
        if self._awake(s.step - 1):  # the step that is measured
            if self.c3o.measures(s.step):
                self._probe(s)
            if (s.step - 1) % self._interval == 0 and s.step > self.c3o.interval:
                self._audit(s)
        self.c3o.awake = self._awake(s.step)
        self._before = self._loss(s) if self.c3o.active and s.step % GUARD_INTERVAL == 0 else None

    def _awake(self, step: int) -> bool:
        resting = self.audits.verdict == "inactive"
        return not resting or (step - 1) // self._interval % REST == REST - 1

    def _probe(self, s: StepState) -> None:
        after = self._slopes(s)
        with self.c3o.before_probe():
            before = self._slopes(s)
        self.c3o.note_bends(before - after)

    def _slopes(self, s: StepState) -> Tensor:
        with torch.enable_grad(), self._ctx.undone():
            self._ctx.loss(s.batch, self._probe_rows).backward()
        slopes = self.c3o.slopes()
        for parameter in self._ctx.model.parameters():
            parameter.grad = None
        return slopes

    def _audit(self, s: StepState) -> None:
        if self.c3o.probed_at() != s.step - 1 or float(self.c3o.credit.mass) == 0:
            return  # that step was skipped, or nothing has been measured yet
        chosen = self.c3o.choose(self._blocks, torch.Generator().manual_seed(self._seed + s.step))
        base = self._loss(s)
        costs = []
        for block in chosen:
            with self.c3o.before_probe(block):
                costs.append(self._loss(s) - base)
        predicted, energy = self.c3o.predicted(chosen)
        # per unit of energy: large blocks cost more than small ones whatever anybody predicts
        per_energy = torch.stack([predicted, torch.stack(costs)]) / energy
        # an expert without tokens took no step: 0 / 0
        pairs = per_energy[:, per_energy.isfinite().all(0)].tolist()
        if len(pairs[0]) > 1:
            self.audits.add(*pairs)
            self.c3o.active = self.audits.verdict == "active"

    @torch.no_grad()
    def _loss(self, s: StepState) -> Tensor:
        with self._ctx.undone():
            return self._ctx.loss(s.batch, self._rows)

    def after_step(self, s: StepState) -> Work:
        """Report the step; look at the guard."""
        if self._before is not None:
            self.c3o.note_reduction(self._before - self._loss(s))
        # a copy: the next step overwrites it, while the count is read once a row
        return Work(1, self.c3o.changed.clone(), self._metrics())

    def _metrics(self) -> dict[str, float | Tensor]:
        scale = self.c3o.credit.scale()
        return {
            "audits": float(self.audits.total),
            "audit_correlation": self.audits.correlation,
            "verdict": VERDICTS[self.audits.verdict],
            "block_scale_min": scale.min(),
            "block_scale_max": scale.max(),
            "reliability": self.c3o.credit.reliability().mean(),
            "guard": self.c3o.guard,
        }

    def state_dict(self) -> dict[str, Any]:
        """Audits and averages. Waits for the device."""
        audits = {"correlations": self.audits.correlations, "total": self.audits.total}
        return {"audits": audits, "c3o": self.c3o.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.audits = AuditLog(list(state["audits"]["correlations"]), state["audits"]["total"])
        self.c3o.load_state_dict(state["c3o"])
