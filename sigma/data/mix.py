"""Mixing sources by share of tokens, without random numbers: the source that is furthest below its share comes next."""

from __future__ import annotations

from collections.abc import Sequence


class ShareMixer:
    """Weighted fair choice. No source is ever more than one document above its share. The state is the counts."""

    def __init__(self, shares: Sequence[float]) -> None:
        if not shares or min(shares) <= 0:
            raise ValueError(f"every share must be positive, not {list(shares)}")
        total = sum(shares)
        self.shares = [share / total for share in shares]
        self.counts = [0] * len(shares)

    def choose(self) -> int:
        """Index of the next source; the first one of equals."""
        given = sum(self.counts)
        deficits = [share * (given + 1) - count for share, count in zip(self.shares, self.counts, strict=True)]
        return max(range(len(deficits)), key=deficits.__getitem__)

    def add(self, index: int, tokens: int) -> None:
        """Count `tokens` of the chosen source."""
        self.counts[index] += tokens
