"""The plug of INSTANT: regions that were recomputed, and whether that kept bytes out of memory."""

from __future__ import annotations

from sigma.memory.instant import audit_saved_bytes, patch, unpatch
from sigma.train.feature import Context, Feature, StepState, Work
from sigma_kernels import counters

COUNTER = "instant.recompute"


class Instant(Feature):
    """`calls` are region recomputations; they are `effective` when autograd keeps fewer bytes than without INSTANT.

    The bytes are measured once per process, on the first row of the first batch.
    """

    name = "instant"

    def setup(self, ctx: Context) -> None:
        """Switch the regions of the model on."""
        self._ctx = ctx
        self._bytes: tuple[int, int] | None = None
        patch(ctx.model)

    def on_batch(self, s: StepState) -> None:
        """Measure once; remember where the counter stands."""
        if self._bytes is None:
            self._bytes = self._measure(s)
        self._before = counters.get(COUNTER)

    def _measure(self, s: StepState) -> tuple[int, int]:
        """Bytes that autograd keeps for one row with INSTANT and without."""
        model, row = self._ctx.model, slice(0, 1)
        with self._ctx.undone():
            kept = audit_saved_bytes(lambda: self._ctx.loss(s.batch, row), model)
            unpatch(model)
            model.config.instant_enabled = False
            try:
                plain = audit_saved_bytes(lambda: self._ctx.loss(s.batch, row), model)
            finally:
                model.config.instant_enabled = True
                patch(model)
        return kept, plain

    def after_step(self, s: StepState) -> Work | None:
        """Report the recomputations of this step."""
        assert self._bytes is not None
        kept, plain = self._bytes
        calls = counters.get(COUNTER) - self._before
        metrics = {"saved_bytes_per_row": plain - kept, "compression_ratio": plain / kept}
        return Work(calls, calls if kept < plain else 0, metrics) if calls else None
