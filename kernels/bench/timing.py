"""How a case is timed: providers in turn, cold L2, medians; its first call; its memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Run = Callable[[], object]

FLUSH_BYTES = 256 << 20  # several times the largest L2
WARM_TURNS, TIMED_TURNS = 25, 100
# A run this slow needs no hundred turns; it is timed apart, so that the quick ones do not wait for it.
SLOW_MS = 20.0
SLOW_WARM_TURNS, SLOW_TIMED_TURNS = 3, 10


@dataclass(frozen=True)
class Times:
    """Milliseconds on the device, over `turns` runs."""

    median: float
    p10: float
    p90: float
    turns: int


def summarize(milliseconds: Sequence[float]) -> Times:
    """Median and the first and last decile."""
    if len(milliseconds) == 1:
        return Times(milliseconds[0], milliseconds[0], milliseconds[0], 1)
    deciles = statistics.quantiles(milliseconds, n=10, method="inclusive")
    return Times(statistics.median(milliseconds), deciles[0], deciles[-1], len(milliseconds))


def interleave(runs: Sequence[Run], warm: int = WARM_TURNS, timed: int = TIMED_TURNS) -> list[Times]:
    """Time the runs in turn, A B C A B C, so that clocks and neighbours disturb all alike.

    The host never waits inside: it runs ahead of the device, as in a training step, unless a run itself makes it wait.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    marks: list[list[tuple[torch.cuda.Event, torch.cuda.Event]]] = [[] for _ in runs]
    for turn in range(warm + timed):
        for run, own in zip(runs, marks, strict=True):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            start.record()
            run()
            end.record()
            if turn >= warm:
                own.append((start, end))
    torch.cuda.synchronize()
    return [summarize([start.elapsed_time(end) for start, end in own]) for own in marks]


def time_group(runs: Sequence[Run], once_s: Sequence[float]) -> list[Times]:
    """Time the quick runs of a group in turn and the slow ones each alone; `once_s` is what one warm call took."""
    quick = [i for i, seconds in enumerate(once_s) if 1e3 * seconds < SLOW_MS]
    found = dict(zip(quick, interleave([runs[i] for i in quick]), strict=True)) if quick else {}
    for i in range(len(runs)):
        if i not in found:
            found[i] = interleave([runs[i]], SLOW_WARM_TURNS, SLOW_TIMED_TURNS)[0]
    return [found[i] for i in range(len(runs))]


def seconds(run: Run) -> float:
    """Wall-clock time of one call until the device is done."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_mib(run: Run) -> tuple[float, float]:
    """(MiB that one call takes at its peak beyond what was there before, its seconds)."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    took = seconds(run)
    return (torch.cuda.max_memory_allocated() - before) / 2**20, took
