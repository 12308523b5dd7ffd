"""How a stream is cut into batches, prepared ahead and shared by ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sigma.data.outages import Limits


@dataclass(frozen=True)
class StreamSettings:
    """`rows` x `length` positions in the global batch, of which rank `rank` of `world` gets its rows.

    `prefetch` batches and the chunks of `workers` threads are prepared ahead. The first `bootstrap` batches come from
    local sources alone. Near-duplicates are looked for among `dedup_window` documents, 0 for not at all. `journal` is
    the file that holds what the network decided; `fresh` ignores an older one.
    """

    rows: int
    length: int
    prefetch: int = 0
    workers: int = 0
    bootstrap: int = 0
    dedup_window: int = 0
    rank: int = 0
    world: int = 1
    limits: Limits = field(default_factory=Limits)
    journal: Path | None = None
    fresh: bool = False
