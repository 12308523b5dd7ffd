"""The plug of GNProx: measures curvature with labels drawn from the model, and what a step really gained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sigma.core.errors import SigmaError
from sigma.optim.curvature import backward_with_drawn_labels, watch_products
from sigma.optim.gnprox import GNProx
from sigma.optim.matrix import MatrixOptimizer
from sigma.train.feature import Context, Feature, StepState, Work
from sigma_kernels.cross_entropy.reference import IGNORED_LABEL


class GNProxCurvature(Feature):
    """`calls` are measurements of the curvature; one is `effective` when it was finite and moved the averages.

    `rows` rows of the batch are read every `interval` steps; the reduction is read on `reduction_rows` of them. `drawn`
    is False for an ablation with the labels of the text.
    """

    name = "gnprox"

    def __init__(
        self,
        matrix: MatrixOptimizer,
        direction: GNProx,
        *,
        interval: int,
        rows: int,
        reduction_rows: int,
        seed: int,
        drawn: bool = True,
    ) -> None:
        self.matrix, self.direction = matrix, direction
        self._interval, self._seed, self._drawn = interval, seed, drawn
        self._rows, self._reduction_rows = slice(0, rows), slice(0, reduction_rows)
        self._before: tuple[list[Tensor], list[Tensor]] | None = None

    def setup(self, ctx: Context) -> None:
        """Keep what the probes need."""
        self._ctx = ctx

    def on_batch(self, s: StepState) -> Work | None:
        """Measure the curvature where it is due; keep the weights of a step whose reduction will be measured."""
        self.matrix.prepare()
        work = None
        if s.step == 1 or s.step % self._interval == 0:
            work = Work(1, self._measure(s))
        self._before = None
        if self.direction.measures(s.step):
            kept = [p.detach().clone() for p in self.direction.statistics.watched()]
            self._before = (kept, [b.weights() for b in self.direction.statistics.batches])
        return work

    def _measure(self, s: StepState) -> Tensor:
        statistics, watched = self.direction.statistics, self.direction.statistics.watched()
        device = statistics.batches[0].device
        generator = torch.Generator(device).manual_seed(self._seed + s.step) if self._drawn else None
        seen: set[nn.Parameter] = set()
        statistics.begin()
        labels_BT = s.batch.labels_BT[self._rows].to(device)
        count = (labels_BT != IGNORED_LABEL).sum()

        def sink(parameter: nn.Parameter, x_TN: Tensor, d_TM: Tensor) -> None:
            seen.add(parameter)
            for batch, part in watched[parameter]:
                statistics.add(batch, part, x_TN, d_TM, count)

        with self._ctx.undone(), watch_products(self._ctx.model, watched, sink):
            backward_with_drawn_labels(self._ctx.logits(s.batch, self._rows), labels_BT, generator)
        for parameter in self._ctx.model.parameters():
            parameter.grad = None
        if len(seen) < len(watched):
            raise SigmaError(
                f"gnprox saw no product with {len(watched) - len(seen)} of its matrices: they are not the weight of a"
                " module; exclude their role (--muon-exclude-...) or use --optimizer soapmuon"
            )
        return statistics.finish(first=s.step == 1)

    @torch.no_grad()
    def after_step(self, s: StepState) -> None:
        """Compare the reduction of the loss with the promised one, and adapt the damping.

        The loss is read with the hidden matrices as they are and as they were, everything else after the step: so the
        difference is theirs alone.
        """
        if self._before is None:
            return
        kept, weights = self._before
        batches = self.direction.statistics.batches
        promised = self.direction.promised([old - b.weights() for old, b in zip(weights, batches, strict=True)])
        after = self._loss(s)
        now = [p.detach().clone() for p in self.direction.statistics.watched()]
        self._write(kept)
        before = self._loss(s)
        self._write(now)
        self.direction.damping.adapt(before - after, promised)

    def _loss(self, s: StepState) -> Tensor:
        with self._ctx.undone():
            return self._ctx.loss(s.batch, self._reduction_rows)

    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.direction.statistics.watched(), values, strict=True):
            parameter.detach().copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The damping. Waits for the device."""
        return {"damping": float(self.direction.damping.value)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.direction.damping.value.fill_(state["damping"])
