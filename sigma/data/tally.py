"""What the stream gave and what it left out, for the metrics. Counts cover the batches that were handed out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sigma.data.feed import Document

DUPLICATE = "near_duplicate"


@dataclass
class Tally:
    """`tokens` by source, `dropped` by reason, `skipped` by source and reason (what the sources themselves left out),
    `substitutions`: documents that another source gave than the one whose turn it was.
    """

    tokens: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)
    substitutions: int = 0

    def take(self, source: str, document: Document) -> None:
        """Count what was left out before a document."""
        self.dropped += document.dropped
        if document.skipped:
            self.skipped[source] = document.skipped

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "tokens": dict(self.tokens),
            "dropped": dict(self.dropped),
            "skipped": {source: dict(counts) for source, counts in self.skipped.items()},
            "substitutions": self.substitutions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.tokens, self.dropped = Counter(state["tokens"]), Counter(state["dropped"])
        self.skipped = {source: Counter(counts) for source, counts in state["skipped"].items()}
        self.substitutions = state["substitutions"]


def columns(state: dict[str, Any]) -> dict[str, int]:
    """The columns of a metrics row from a `state_dict`."""
    left_out = Counter(state["dropped"])
    for counts in state["skipped"].values():
        left_out.update(counts)
    row = {"data_substitutions": state["substitutions"]}
    row |= {f"data_tokens_{source}": tokens for source, tokens in sorted(state["tokens"].items())}
    return row | {f"data_dropped_{reason}": count for reason, count in sorted(left_out.items())}
