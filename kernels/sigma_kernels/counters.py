"""How often each mechanism really ran. Incremented where the work is done, saved in the checkpoint, read by `verify`.

Names are `<op>.<what>` (`rms_norm.triton_forward`, `instant.recompute`). Host-side and thread-safe: autograd runs
backward functions on its own threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, local

_counts: Counter[str] = Counter()
_lock = Lock()
_recording = local()


def add(name: str, n: int = 1) -> None:
    """Count `n` more executions of `name`."""
    recorded: Counter[str] | None = getattr(_recording, "counts", None)
    if recorded is not None:
        recorded[name] += n
        return
    with _lock:
        _counts[name] += n


def add_all(counts: Mapping[str, int]) -> None:
    """Count what `recorded` gave once more."""
    for name, n in counts.items():
        add(name, n)


@contextmanager
def recorded() -> Iterator[Counter[str]]:
    """What this thread counts inside, kept apart: the work is only prepared, and counts when it is done."""
    before, counts = getattr(_recording, "counts", None), Counter[str]()
    _recording.counts = counts
    try:
        yield counts
    finally:
        _recording.counts = before


def get(name: str) -> int:
    """Executions of `name` so far (0 when it never ran)."""
    with _lock:
        return _counts[name]


def snapshot() -> dict[str, int]:
    """A copy of all counters, sorted by name."""
    with _lock:
        return {name: _counts[name] for name in sorted(_counts) if _counts[name]}


def load(values: Mapping[str, int]) -> None:
    """Replace all counters, as when a run resumes from a checkpoint."""
    with _lock:
        _counts.clear()
        _counts.update({name: int(n) for name, n in values.items()})
