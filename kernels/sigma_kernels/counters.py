"""How often each mechanism really ran. Incremented where the work is done, saved in the checkpoint, read by `verify`.

Names are `<op>.<what>` (`rms_norm.triton_forward`, `instant.recompute`). Host-side and thread-safe: autograd runs
backward functions on its own threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from threading import Lock

_counts: Counter[str] = Counter()
_lock = Lock()


def add(name: str, n: int = 1) -> None:
    """Count `n` more executions of `name`."""
    with _lock:
        _counts[name] += n


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
