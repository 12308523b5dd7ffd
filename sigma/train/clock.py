"""Where the time goes: at every moment exactly one phase runs, so that the phases add up to the wall time.

On the CPU the marks are host times. On CUDA they are events on the current stream: a mark costs the device nothing,
and a phase lasts as long as the device needed, not as long as the host needed to enqueue it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

PHASES: tuple[str, ...] = (
    "data",
    "forward",
    "backward",
    "opt_step",
    "features",
    "eval",
    "sample",
    "checkpoint",
    "metrics",
)
CORE_PHASES: tuple[str, ...] = ("forward", "backward", "opt_step")


class Timeline(Protocol):
    """Marks in time and the seconds between two of them; `wait` returns when the last mark has passed."""

    def mark(self) -> Any: ...
    def wait(self, mark: Any) -> None: ...
    def seconds(self, start: Any, end: Any) -> float: ...


class HostTimeline:
    """Marks are readings of a monotonic host clock."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        return self._now()

    def wait(self, mark: float) -> None:
        return None

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaTimeline:
    """Marks are CUDA events, reused once their interval was read."""

    def __init__(self) -> None:
        self._used: list[torch.cuda.Event] = []
        self._free: list[torch.cuda.Event] = []

    def mark(self) -> torch.cuda.Event:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        self._used.append(event)
        return event

    def wait(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()
        # Every earlier event has passed too; the newest one still starts the next interval.
        self._free += [event for event in self._used if event is not mark]
        self._used = [mark]

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end) / 1000.0


class PhaseClock:
    """`with clock("forward"):` gives the time inside to that phase; time outside every phase goes to `metrics`.

    A phase inside another interrupts it. `read` waits for the device once and returns the seconds since the last read.
    """

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._stack = ["metrics"]
        self._marks: list[tuple[str, Any]] = [("metrics", timeline.mark())]

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if phase not in PHASES:
            raise ValueError(f"unknown phase {phase!r}")
        self._stack.append(phase)
        self._begin(phase)
        try:
            yield
        finally:
            self._stack.pop()
            self._begin(self._stack[-1])

    def _begin(self, phase: str) -> None:
        self._marks.append((phase, self._timeline.mark()))

    def read(self) -> dict[str, float]:
        """Seconds of every phase since the last read; they add up to the time between the two reads."""
        end = self._timeline.mark()
        self._timeline.wait(end)
        totals = dict.fromkeys(PHASES, 0.0)
        ends = [mark for _, mark in self._marks[1:]] + [end]
        for (phase, start), stop in zip(self._marks, ends, strict=True):
            totals[phase] += self._timeline.seconds(start, stop)
        self._marks = [(self._stack[-1], end)]
        return totals


def make_clock(device: torch.device) -> PhaseClock:
    """A clock for this device."""
    return PhaseClock(CudaTimeline() if device.type == "cuda" else HostTimeline())
