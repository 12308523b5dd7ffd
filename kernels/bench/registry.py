"""The benchmarks by op. A file in `ops/` declares one with @benchmark; nothing else needs to change."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from floors import Work


class Skip(Exception):  # noqa: N818 - no error: something to compare with is not there, and the message says what
    """Raised by a case's setup: it cannot be timed here."""


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    shape: str
    dtype: str
    provider: str
    direction: str  # inference, forward, backward or forward+backward
    bytes: int  # what the op must read and write at least, whatever the provider really moves
    run: Callable[[], object]
    work: tuple[Work, ...] = ()  # the phases of the op, from which its floor follows
    setup: Callable[[], object] | None = None  # makes what `run` needs; called once, before anything is measured
    error: Callable[[], float] | None = None  # relative L2 distance to the result in fp64
    limit_s: float | None = None  # give it a process of its own, and give up after so long


Benchmark = Callable[[], Iterator[Case | list[Case]]]

_benchmarks: dict[str, Benchmark] = {}


def benchmark(op: str) -> Callable[[Benchmark], Benchmark]:
    """Declare the generator of an op's cases; each case may free its memory when the next one is asked for.

    A list of cases is timed in turn. It should make its tensors in `setup`, which filtered cases never reach.
    """

    def declare(function: Benchmark) -> Benchmark:
        _benchmarks[op] = function
        return function

    return declare


def load() -> dict[str, Benchmark]:
    """All benchmarks, by op."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent / "ops")]):
        importlib.import_module(f"ops.{module.name}")
    return dict(sorted(_benchmarks.items()))
