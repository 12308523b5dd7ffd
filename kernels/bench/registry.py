"""The benchmarks by op. A file in `ops/` declares one with @benchmark; nothing else needs to change."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    shape: str
    dtype: str
    provider: str
    direction: str  # forward or backward
    bytes: int  # what the op must read and write at least, whatever the provider really moves
    run: Callable[[], object]


Benchmark = Callable[[], Iterator[Case]]

_benchmarks: dict[str, Benchmark] = {}


def benchmark(op: str) -> Callable[[Benchmark], Benchmark]:
    """Declare the generator of an op's cases; each case may free its memory when the next one is asked for."""

    def declare(function: Benchmark) -> Benchmark:
        _benchmarks[op] = function
        return function

    return declare


def load() -> dict[str, Benchmark]:
    """All benchmarks, by op."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent / "ops")]):
        importlib.import_module(f"ops.{module.name}")
    return dict(sorted(_benchmarks.items()))
