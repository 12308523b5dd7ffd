"""A search for the fastest launches of one op on this machine: one setting after the other, against the clock.

Faster is not enough: a choice counts only when the op's results stay what they are with the present launches. A launch
that changes them is a miscompiled kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigma_kernels import tuned

LEAST_GAIN = 0.02  # of the time: less is noise
MOST_ERROR = 5e-2  # relative distance of two results: other chunks in 16 bits give 3e-2, a miscompiled kernel about 1

Call = Callable[[], Sequence[Tensor]]
Clock = Callable[[Call], float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Tunable:
    """An op with sizes, ready to be timed. `call` launches with whatever `tuned` has under `op` and `key`."""

    op: str
    key: str
    present: Mapping[str, Any]
    candidates: Mapping[str, Sequence[Any]]
    """What else may be tried, by setting."""
    call: Call


@dataclass(frozen=True)
class Found:
    """The settings that won, and milliseconds with the present and with these."""

    settings: tuned.Settings
    before_ms: float
    after_ms: float


def device_ms(call: Call) -> float:
    """Median time of a call on the GPU, replayed from a graph: launched one by one, a small op would time the host."""
    from triton.testing import do_bench_cudagraph

    median = do_bench_cudagraph(call, rep=100, return_mode="median")
    assert isinstance(median, float)
    return median


def search(
    tunable: Tunable,
    clock: Clock = device_ms,
    say: Say = lambda line: None,
    goes_on: Callable[[], bool] = lambda: True,
    keep: Callable[[tuned.Settings], None] = lambda settings: None,
) -> Found:
    """Try every candidate of each setting, with the winners of the settings before it; no further one once `goes_on`
    says no. `keep` gets the settings whenever one of them has won.
    """
    best = dict(tunable.present)
    with tuned.using(tunable.op, tunable.key, best):
        expected = [t.detach().clone() for t in tunable.call()]
        before_ms = best_ms = clock(tunable.call)
    say(f"{tunable.op} {tunable.key}: {before_ms:.3f} ms now")
    for name, values in tunable.candidates.items():
        for value in values:
            if value == best[name] or not goes_on():
                continue
            candidate = best | {name: value}
            ms, reason = _try(tunable, candidate, expected, clock)
            won = ms is not None and ms < best_ms * (1 - LEAST_GAIN)
            said = reason or f"{ms:.3f} ms{', taken' if won else ''}"
            say(f"  {name} {value} in place of {best[name]}: {said}")
            if won and ms is not None:
                best, best_ms = candidate, ms
                keep(best)
    return Found(best, before_ms, best_ms)


def search_all(
    makes: Sequence[Callable[[], Tunable]], table: Path, minutes: float, say: Say, clock: Clock = device_ms
) -> bool:
    """Search one op after the other, each in an equal share of the time that is left; whether it was enough for all.

    Whatever wins is saved at once: an interruption loses none of it.
    """
    end, enough = time.monotonic() + 60 * minutes, True
    for number, make in enumerate(makes):
        tunable, now = make(), time.monotonic()
        own_end = now + (end - now) / (len(makes) - number)

        def keep(settings: tuned.Settings, at: tuple[str, str] = (tunable.op, tunable.key)) -> None:
            tuned.save(table, {at: settings})

        found = search(tunable, clock, say, lambda own_end=own_end: time.monotonic() < own_end, keep)
        keep(found.settings)
        enough = enough and time.monotonic() < own_end
        say(f"{tunable.op} {tunable.key}: {found.before_ms:.3f} -> {found.after_ms:.3f} ms")
    return enough


def _try(
    tunable: Tunable, candidate: tuned.Settings, expected: Sequence[Tensor], clock: Clock
) -> tuple[float | None, str]:
    """(milliseconds, "") of a candidate, or (None, why it does not count)."""
    from triton.errors import TritonError

    with tuned.using(tunable.op, tunable.key, candidate):
        try:
            worst = _worst_distance(tunable.call(), expected)
            if not worst <= MOST_ERROR:  # nor NaN
                return None, f"computes something else (relative error {worst:.1e})"
            return clock(tunable.call), ""
        except (TritonError, ValueError, RuntimeError) as error:  # the compiler's passes and the driver raise the last
            return None, f"does not run ({type(error).__name__})"


def _worst_distance(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest; NaN when one is."""
    distances = [_distance(result, good) for result, good in zip(results, expected, strict=True)]
    return float(torch.tensor(distances).max())


def _distance(result: Tensor, good: Tensor) -> float:
    result, good = result.detach(), good.double()
    norm = torch.linalg.vector_norm(good).clamp_min(torch.finfo(torch.float32).tiny)
    return float(torch.linalg.vector_norm(result.double() - good) / norm)
