"""One optimizer step: micro-batches, clipping, the finite check, the update. Never waits for the device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sigma.core.errors import SigmaError
from sigma.model.bitlinear import new_weight_epoch
from sigma.model.layout import cu_seqlens_of
from sigma.optim.build import OptimizerSet
from sigma.train.clock import PhaseClock
from sigma.train.feature import Context, StepState
from sigma.train.rollback import Rollback, persistent_buffers
from sigma_kernels.cross_entropy.reference import IGNORED_LABEL

OnEvent = Callable[..., None]


class TensorBatch(Protocol):
    """What a step needs of a batch: host tensors `[B, T]`, labels already shifted, -100 where nothing is predicted."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    segments_BT: Tensor


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed. `micro_batch` is in rows; `grad_clip` 0 switches clipping off."""

    device: torch.device
    bf16: bool
    micro_batch: int
    grad_clip: float


@dataclass(frozen=True)
class StepResult:
    """Device scalars of one step: cross-entropy (nats per label), router loss, gradient norm, 1 when it was skipped."""

    loss: Tensor
    aux_loss: Tensor
    grad_norm: Tensor
    found_inf: Tensor
    labels: int


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device had no memory left; torch's CPU allocator says so only in its text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class Stepper:
    """Trains `model` on one batch at a time.

    The gradient is that of the mean over all labels of the batch, however it is cut into micro-batches. When memory
    runs out, the optimizer's CUDA graphs are let go, or else the micro-batch is halved, and the same batch is done
    again; `micro_batch` belongs to the checkpoint, because the order of summation changes the last bits. `forward` is
    the model or its compiled form.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: OptimizerSet,
        settings: StepSettings,
        clock: PhaseClock,
        *,
        on_loss: Callable[[StepState], None],
        on_retry: Callable[[], None],
        on_event: OnEvent,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self.model = model
        self.optimizers = optimizers
        self.settings = settings
        self.micro_batch = settings.micro_batch
        self._clock = clock
        self._on_loss = on_loss
        self._on_retry = on_retry
        self._on_event = on_event
        self._forward = model if forward is None else forward
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = list(persistent_buffers(model).values())
        zero = torch.zeros((), dtype=torch.int64, device=settings.device)
        self.skipped_total, self.skipped_in_row, self.longest_skip = zero, zero.clone(), zero.clone()

    def train(self, s: StepState, scale: float) -> StepResult:
        """Forward, backward and update for `s.batch` with the learning rates at `scale` of their peak.

        Raises SigmaError when not even one row fits into memory, ValueError for a batch without labels.
        """
        rollback = Rollback(self._buffers, self.settings.device)
        loss, aux, labels = self._forward_backward(s, rollback)
        return self._update(loss, aux, labels, scale, rollback)

    def _forward_backward(self, s: StepState, rollback: Rollback) -> tuple[Tensor, Tensor, int]:
        while True:
            try:
                return self._accumulate(s)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                released = self.optimizers.release_graphs()
                if self.micro_batch == 1 and not released:
                    raise SigmaError(
                        "out of memory with one row at a time: lower --seq-len or the model's sizes (--preset), or"
                        " close other programs that use the device"
                    ) from error
            # Outside the except block: the traceback would keep the activations of the failed attempt alive.
            self._let_go(s)
            if not released:  # else the batch may fit as it is
                self._halve(s.step)
            rollback.restore()
            self._on_retry()

    def _let_go(self, s: StepState) -> None:
        """Free what the failed attempt holds: its losses keep whole graphs alive, which the next one would add to."""
        s.loss = None
        self.model.drop_graph()  # pyright: ignore[reportCallIssue]
        self.optimizers.zero_grad()
        gc.collect()
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halve(self, step: int) -> None:
        before, self.micro_batch = self.micro_batch, max(1, self.micro_batch // 2)
        self._on_event("micro_batch_halved", step=step, before=before, after=self.micro_batch)

    def _accumulate(self, s: StepState) -> tuple[Tensor, Tensor, int]:
        labels = int((s.batch.labels_BT != IGNORED_LABEL).sum())
        if labels == 0:
            raise ValueError("a batch without labels cannot train anything")
        new_weight_epoch(self.model)  # else the counters would depend on probes, validations and resumes before it
        device = self.settings.device
        loss = torch.zeros((), device=device)
        aux = torch.zeros((), device=device)
        for rows in self._micro_batches(s.batch):
            part = int((s.batch.labels_BT[rows] != IGNORED_LABEL).sum())
            if part == 0:
                continue  # only padding: its mean loss would be 0 / 0
            weight = part / labels
            with self._clock("forward"):
                part_loss, part_aux = self._losses(self._forward, s.batch, rows)
                s.loss = (part_loss + part_aux) * weight
                self._on_loss(s)
                assert s.loss is not None
            with self._clock("backward"):
                s.loss.backward()
            loss += part_loss.detach() * weight
            aux += part_aux.detach() * weight
        s.loss = None
        return loss, aux, labels

    def _micro_batches(self, batch: TensorBatch) -> Iterator[slice]:
        for start in range(0, batch.input_ids_BT.size(0), self.micro_batch):
            yield slice(start, start + self.micro_batch)

    def context(self) -> Context:
        """What features may use. Their probes run the model itself, never its compiled form."""
        return Context(self.model, self._probe_loss, self._undone, self._probe_logits)

    def _probe_loss(self, batch: TensorBatch, rows: slice) -> Tensor:
        loss, aux = self._losses(self.model, batch, rows)
        return loss + aux

    def _probe_logits(self, batch: TensorBatch, rows: slice) -> Tensor:
        with self._autocast():
            return self.model(**self._inputs(batch, rows)).logits

    @contextmanager
    def _undone(self) -> Iterator[None]:
        rollback = Rollback(self._buffers, self.settings.device)
        try:
            yield
        finally:
            self.model.drop_graph()  # pyright: ignore[reportCallIssue]
            rollback.restore()

    def _losses(self, forward: Callable[..., Any], batch: TensorBatch, rows: slice) -> tuple[Tensor, Tensor]:
        with self._autocast():
            out = forward(**self._inputs(batch, rows), shift_labels=self._send(batch.labels_BT[rows]))
            return out.loss.float(), self.model.aux_loss().float()  # pyright: ignore[reportCallIssue]

    def _inputs(self, batch: TensorBatch, rows: slice) -> dict[str, Any]:
        segments_BT = batch.segments_BT[rows]
        return {
            "input_ids": self._send(batch.input_ids_BT[rows]),
            "segment_ids": self._send(segments_BT),
            "cu_seqlens": self._send(cu_seqlens_of(segments_BT)),
            "use_cache": False,
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.settings.device.type, torch.bfloat16, enabled=self.settings.bf16)

    def _send(self, tensor: Tensor) -> Tensor:
        if self.settings.device.type == "cuda":
            tensor = tensor.pin_memory()  # a copy from pageable memory would wait for the device
        return tensor.to(self.settings.device, non_blocking=True)

    def _update(self, loss: Tensor, aux: Tensor, labels: int, scale: float, rollback: Rollback) -> StepResult:
        with self._clock("opt_step"):
            norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
            finite = torch.isfinite(norm) & torch.isfinite(loss + aux)
            found_inf = (~finite).to(torch.float32)
            clip = None
            if self.settings.grad_clip > 0:
                nn.utils.clip_grads_with_norm_(self._parameters, self.settings.grad_clip, norm)
                clip = (self.settings.grad_clip / (norm + 1e-6)).clamp(max=1)  # what it has multiplied with
            self.optimizers.set_scale(scale)
            self.optimizers.step(found_inf, clip)
            self.model.after_update()  # pyright: ignore[reportCallIssue]
            rollback.restore_buffers(found_inf)
            self.optimizers.zero_grad()
            self._count_skip(~finite)
        return StepResult(loss, aux, norm, found_inf, labels)

    def _count_skip(self, skipped: Tensor) -> None:
        self.skipped_total = self.skipped_total + skipped
        self.skipped_in_row = (self.skipped_in_row + 1) * skipped
        self.longest_skip = torch.maximum(self.longest_skip, self.skipped_in_row)

    def state_dict(self) -> dict[str, int]:
        """The micro-batch that fits and the skip counters. Waits for the device."""
        return {
            "micro_batch": self.micro_batch,
            "skipped_total": int(self.skipped_total),
            "skipped_in_row": int(self.skipped_in_row),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore `state_dict`. A run never goes back to a larger micro-batch by itself."""
        self.micro_batch = min(self.settings.micro_batch, state["micro_batch"])
        self.skipped_total = torch.full_like(self.skipped_total, state["skipped_total"])
        self.skipped_in_row = torch.full_like(self.skipped_in_row, state["skipped_in_row"])
        # of this process: else a run that stopped for its skips could not go on with the lower rate that it asks for
        self.longest_skip = torch.zeros_like(self.skipped_in_row)
