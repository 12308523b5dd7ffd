"""metrics.jsonl: strict JSON, append only, one row per line. The names are listed in docs/metrics.md."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigma.core.files import append_line, complete_torn_line
from sigma.core.strict_json import StrictJsonError, dumps, loads
from sigma.train.clock import CORE_PHASES, PHASES
from sigma.train.step import StepResult

FILE_NAME = "metrics.jsonl"
KINDS = ("startup", "train", "eval", "sample", "event")
EMA_DECAY = 0.9
ETA_WEIGHT = 0.3  # of the newest interval in the smoothed time per step
Listener = Callable[[Mapping[str, Any]], None]


class MetricsLog:
    """Appends rows and hands each to the listeners (the console). A new segment starts with every process."""

    def __init__(self, run_dir: Path, listeners: Iterable[Listener] = ()) -> None:
        self._path = run_dir / FILE_NAME
        self._listeners = list(listeners)
        self.torn_line_completed = complete_torn_line(self._path)
        self.segment = last_segment(self._path) + 1

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append one row and return it. NaN and infinities become null. Raises ValueError for an unknown kind."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind of row {kind!r}")
        row = {"kind": kind, "step": step, "seg": self.segment, "t": round(time.time(), 3), **values}
        append_line(self._path, dumps(row))
        for listener in self._listeners:
            listener(row)
        return row

    def event(self, event: str, step: int, **details: Any) -> None:
        """Append an `event` row."""
        self.write("event", step, {"event": event, **details})


def last_segment(path: Path) -> int:
    """The segment of the last readable row; -1 when there is none."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            row = loads(line)
        except StrictJsonError:
            continue  # a torn line: the one before it counts
        if isinstance(row, dict) and isinstance(row.get("seg"), int):
            return row["seg"]
    return -1


class IntervalMeter:
    """What the steps since the last row produced, kept on the device and read at once.

    Skipped steps count neither for the loss nor for bits per byte. Sums and the moving average are state: a resumed
    run writes the same row that the uninterrupted one writes.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # nats, labels, bytes
        self._ema = torch.full((), torch.nan, dtype=torch.float64, device=device)
        self._last: dict[str, Tensor] = {}

    def add(self, result: StepResult, text_bytes: int) -> None:
        """Count one step; `text_bytes` are the UTF-8 bytes behind its labels."""
        ok = result.found_inf == 0
        loss = result.loss.double()
        sizes = [loss * result.labels, torch.full_like(loss, result.labels), torch.full_like(loss, text_bytes)]
        self._sums = torch.where(ok, self._sums + torch.stack(sizes), self._sums)
        moved = torch.where(self._ema.isnan(), loss, EMA_DECAY * self._ema + (1 - EMA_DECAY) * loss)
        self._ema = torch.where(ok, moved, self._ema)
        self._last = {"grad_norm": result.grad_norm, "aux_loss": result.aux_loss}

    def read(self, extra: Mapping[str, float | Tensor]) -> dict[str, float]:
        """Loss metrics of the interval and the values of `extra`, in one wait for the device; a new interval starts."""
        held = self._last | {name: value for name, value in extra.items() if isinstance(value, Tensor)}
        scalars = [value.detach().double().reshape(1) for value in held.values()]
        numbers = torch.cat([self._sums, self._ema.reshape(1), *scalars]).tolist()
        nats, labels, text_bytes, ema, *rest = numbers
        self._sums = torch.zeros_like(self._sums)
        row = {"loss": nats / labels if labels else torch.nan, "loss_ema": ema}
        row["train_bpb"] = bits_per_byte(nats, text_bytes)
        row |= {name: value for name, value in extra.items() if not isinstance(value, Tensor)}
        return row | dict(zip(held, rest, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The sums of the unfinished interval. Waits for the device."""
        ema = float(self._ema)
        return {"sums": self._sums.tolist(), "loss_ema": None if ema != ema else ema}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._sums = torch.tensor(state["sums"], dtype=torch.float64, device=self._sums.device)
        ema = state["loss_ema"]
        self._ema = torch.full_like(self._ema, torch.nan if ema is None else ema)


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Cross-entropy in bits per UTF-8 byte of text; NaN without text."""
    return nats / math.log(2) / text_bytes if text_bytes else torch.nan


class SpeedMeter:
    """Tokens and wall time since the last row: throughput, phases, bottleneck, time left."""

    def __init__(self, flops_per_token: float | None, peak_flops: float | None) -> None:
        self._flops = flops_per_token
        self._peak = peak_flops
        self._start = time.perf_counter()
        self._tokens = self._steps = 0
        self._step_s: float | None = None

    def add(self, tokens: int) -> None:
        """Count one step of `tokens` training tokens."""
        self._tokens += tokens
        self._steps += 1

    def read(self, phases: Mapping[str, float], steps_left: int) -> dict[str, Any]:
        """Speed metrics of the interval, of which `phases` are the seconds; starts a new interval."""
        now = time.perf_counter()
        wall, self._start = now - self._start, now
        tokens, steps, self._tokens, self._steps = self._tokens, self._steps, 0, 0
        newest = wall / max(steps, 1)
        previous = newest if self._step_s is None else self._step_s
        self._step_s = previous + ETA_WEIGHT * (newest - previous)
        stage = max(PHASES, key=lambda phase: phases[phase])
        row: dict[str, Any] = {
            "core_tokens_per_s": _ratio(tokens, sum(phases[phase] for phase in CORE_PHASES)),
            "effective_tokens_per_s": _ratio(tokens, wall),
            "wall_s": wall,
            **{f"phase_{phase}_s": phases[phase] for phase in PHASES},
            "perf_bottleneck_stage": stage,
            "perf_bottleneck_share": _ratio(phases[stage], sum(phases.values())),
            "eta_s": steps_left * self._step_s,
        }
        if self._flops and self._peak:
            row["mfu"] = row["effective_tokens_per_s"] * self._flops / self._peak
        return row


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else 0.0
