"""The training loop: short enough to read in one go; everything that it calls is one file."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from sigma.config.root import RunConfig
from sigma.core.errors import SigmaError
from sigma.core.lock import RunLock
from sigma.core.stop import StopRequest
from sigma.data.stream import StopWaitingError
from sigma.optim.schedule import learning_rate_scale
from sigma.train.clock import PhaseClock
from sigma.train.crash import CrashContext
from sigma.train.evaluate import Evaluator
from sigma.train.feature import FeatureSet, StepState
from sigma.train.hardware import readings
from sigma.train.kernel_stamp import KernelStamp
from sigma.train.metrics import IntervalMeter, MetricsLog, SpeedMeter
from sigma.train.progress import Outcome, Progress
from sigma.train.report import write_report
from sigma.train.sample import Sampler
from sigma.train.saver import Saver
from sigma.train.status import State, write_status
from sigma.train.step import Stepper


class DivergedError(SigmaError):
    """Too many updates in a row had a non-finite loss or gradient."""


class Data(Protocol):
    """Endless batches."""

    def next_batch(self) -> Any: ...
    def columns(self) -> dict[str, int]: ...
    def close(self) -> None: ...


@dataclass
class Trainer:
    """The parts of a run, put together by `sigma.build`; `run` uses them up."""

    config: RunConfig
    run_dir: Path
    model: nn.Module
    data: Data
    stepper: Stepper
    features: FeatureSet
    evaluator: Evaluator
    sampler: Sampler
    saver: Saver
    log: MetricsLog
    clock: PhaseClock
    meter: IntervalMeter
    speed: SpeedMeter
    stop: StopRequest
    lock: RunLock
    progress: Progress
    startup: dict[str, Any]
    on_start: Callable[[int], None]
    stamp: KernelStamp | None = None
    last_row: dict[str, Any] = field(default_factory=dict)
    last_records: tuple[Any, ...] = ()
    saved_step: int | None = None
    announced: bool = False

    def run(self) -> Outcome:
        """Train until the last step or a stop request. Either way the last finished step is in a checkpoint.

        A run that is already finished does nothing. Call it in the main thread, because of the signals. Exceptions go
        on to the caller, who writes the crash report with `crash_context`; raises DivergedError after
        `--max-skipped-steps` skipped updates in a row.
        """
        try:
            with self.stop:
                return self._run()
        except Exception:
            self._note_crash()
            raise
        finally:
            self.close()

    def _run(self) -> Outcome:
        self._resume()
        if self.progress.step >= self.steps and self.evaluator.is_final(self.progress.step):
            return Outcome("already_finished", self.progress.step, self.run_dir)
        self._announce()
        with suppress(StopWaitingError):  # asked to stop while a source was waited for: the last step is the end
            while self.progress.step < self.steps and not self.stop.requested:
                self._step()
        self._save()
        if not self.stop.requested and self._finish():
            return self._outcome("finished")
        return self._outcome("interrupted")

    @property
    def steps(self) -> int:
        """Length of the run in optimizer steps."""
        assert self.config.train.steps is not None
        return self.config.train.steps

    def close(self) -> None:
        """Let go of features, data and the run's lock."""
        with ExitStack() as stack:  # runs all three, the last one first, whatever they raise
            stack.callback(self.lock.release)
            stack.callback(self.data.close)
            stack.callback(self.features.close)

    def crash_context(self) -> CrashContext:
        """What a crash report says about the run."""
        names = self.startup
        calls = {name: value for name, value in self.last_row.items() if name.startswith("feature_")}
        return CrashContext(
            step=self.progress.step,
            tokens_seen=self.progress.tokens,
            device=f"{names['device']} ({names['device_name']})",
            last_metrics=self.last_row,
            feature_calls=calls,
            algorithmic_features={name: value for name, value in calls.items() if name.endswith("_enabled")},
            optimizer=self.config.train.optimizer,
            config=asdict(self.config),
            last_batch_records=self.last_records,
        )

    def _resume(self) -> None:
        with self.clock("checkpoint"):
            if not self.config.run.resume:
                self._set_aside()
            self.saved_step = self.saver.load_latest()
        self.startup["checkpoint_resume_step"] = self.saved_step

    def _set_aside(self) -> None:
        """`--no-resume`: what an earlier run left in this folder must not be taken for this run's."""
        moved = self.saver.store.set_aside()
        self.evaluator.forget_final()
        if moved is not None:
            self.log.event("checkpoints_set_aside", 0, folder=str(moved))

    def _announce(self) -> None:
        step = self.progress.step
        self.on_start(step)
        self.log.write("startup", step, self.startup)
        if self.log.torn_line_completed:
            self.log.event("torn_metrics_line", step, count=1)
        if self.lock.took_over_pid is not None:
            self.log.event("previous_process_died", step, pid=self.lock.took_over_pid)
        if self.startup["torch_compile_enabled"] and not self.startup["torch_compile_active"]:
            self.log.event("torch_compile_ignored", step, reason="--torch-compile works on CUDA only")
        self._write_status("running")
        self.announced = True

    def _note_crash(self) -> None:
        """Leave `crashed` in status.json, if this start had begun to write there."""
        if self.announced:
            with suppress(OSError):  # a full disk must not hide why the run ended
                self._write_status("crashed")

    def _step(self) -> None:
        with self.clock("data"):
            batch = self.data.next_batch()
        s = StepState(self.progress.step + 1, batch)
        with self.clock("features"):
            self.features.run("on_batch", s)
        self.last_records = s.batch.records
        result = self.stepper.train(s, self._scale(s.step))
        with self.clock("features"):
            self.features.run("after_step", s)
        self.progress.step = s.step
        self.progress.tokens += s.batch.tokens
        self._leave_stamp()
        self.meter.add(result, s.batch.text_bytes)
        self.speed.add(s.batch.tokens)
        self._after_step(s)

    def _leave_stamp(self) -> None:
        """After the first step: all that it launched is in the cache."""
        if self.stamp is not None:
            self.stamp.leave()
            self.stamp = None

    def _after_step(self, s: StepState) -> None:
        run, step = self.config.run, s.step
        last = step == self.steps
        if step % run.log_interval == 0 or last:
            self._write_row(s)
        if run.eval_interval and step % run.eval_interval == 0 and not last:
            self._evaluate()
        if run.sample_interval and step % run.sample_interval == 0 and not last:
            self._sample()
        if self.saver.due(step, time.monotonic()):
            self._save()

    def _scale(self, step: int) -> float:
        train = self.config.train
        return learning_rate_scale(step, self.steps, train.warmup_share, train.decay_share)

    def _write_row(self, s: StepState) -> None:
        phases = self.clock.read()
        device: dict[str, float | Tensor] = {**self.model.metrics(), **s.metrics}  # pyright: ignore[reportCallIssue]
        device |= self.stepper.optimizers.metrics()
        device["skipped_steps"] = self.stepper.skipped_total
        device["longest_skip"] = self.stepper.longest_skip
        row: dict[str, Any] = self.meter.read(device)
        longest, row["skipped_steps"] = int(row.pop("longest_skip")), int(row["skipped_steps"])
        row["lr"] = self._scale(s.step) * (self.config.train.lr or 0.0)
        row["tokens_seen_total"] = self.progress.tokens
        row["micro_batch"] = self.stepper.micro_batch
        row |= self.speed.read(phases, self.steps - s.step)
        row |= self.data.columns() | self.features.columns() | readings(self.stepper.settings.device)
        self.last_row = self.log.write("train", s.step, row)
        self._write_status("running")
        if longest >= self.config.train.max_skipped_steps:
            raise DivergedError(
                f"{longest} updates in a row were skipped for a non-finite loss or gradient: lower --lr and"
                " --adam-lr or --grad-clip, or raise --warmup-share; delete the newest checkpoints to go further back"
            )

    def _evaluate(self) -> None:
        with self.clock("eval"):
            row = self.evaluator.evaluate()
        self.log.write("eval", self.progress.step, row)
        self.progress.val_bpb = row["val_bpb"]

    def _sample(self) -> None:
        with self.clock("sample"):
            row = self.sampler.write(self.progress.step)
        self.log.write("sample", self.progress.step, row)

    def _save(self) -> None:
        if self.progress.step in (0, self.saved_step):  # nothing was trained since the last one
            return
        with self.clock("checkpoint"), self.stop.hold():
            self.saver.save(self.progress.step)
        self.saved_step = self.progress.step

    def _finish(self) -> bool:
        """The last sample, the whole validation, the idle check; False when a stop request came in between."""
        self._sample()
        with self.clock("eval"):
            row = self.evaluator.final(self.progress.step, self.progress.tokens, lambda: self.stop.requested)
        if row is None:
            return False
        self.log.write("eval", self.progress.step, row)
        self.progress.val_bpb = row["val_bpb"]
        for name in self.features.idle(self.progress.step):
            self.log.event("feature_idle", self.progress.step, feature=name)
        return True

    def _outcome(self, state: Literal["finished", "interrupted"]) -> Outcome:
        self._write_status(state)
        write_report(self.run_dir)
        if state == "finished":  # a signal that came after the last step changes nothing
            return Outcome(state, self.progress.step, self.run_dir)
        return Outcome(state, self.progress.step, self.run_dir, self.stop.exit_code, self.stop.signal_name)

    def _write_status(self, state: State) -> None:
        names = ("loss", "loss_ema", "train_bpb", "effective_tokens_per_s", "eta_s", "mem_gb", "perf_bottleneck_stage")
        values = {name: self.last_row[name] for name in (*names, "perf_bottleneck_share") if name in self.last_row}
        values |= {"val_bpb": self.progress.val_bpb, "last_checkpoint_step": self.saved_step}
        write_status(self.run_dir, state, self.progress.step, self.steps, values)
