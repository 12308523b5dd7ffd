"""Does credit predict? Rank correlation between predicted credit and what taking a block's step back really costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["undecided", "active", "inactive"]

WINDOW = 20
"""Audits that the verdict looks back on."""
LEAST = 8
"""Audits before there is a verdict."""
THRESHOLD = 0.3
"""Mean rank correlation below which credit is switched off."""


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation of two samples without ties, in -1..1. Raises ValueError below two pairs."""
    n = len(x)
    if n < 2 or n != len(y):
        raise ValueError(f"a rank correlation needs two samples of the same size above 1, not {n} and {len(y)}")
    squares = sum((a - b) ** 2 for a, b in zip(_ranks(x), _ranks(y), strict=True))
    return 1 - 6 * squares / (n * (n * n - 1))


def _ranks(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0] * len(values)
    for rank, index in enumerate(order):
        ranks[index] = rank
    return ranks


@dataclass
class AuditLog:
    """The correlations of the latest audits and what they allow.

    Credit is guilty until proven: without `LEAST` audits there is no verdict and the scales stay at 1. The blocks of
    one audit are compared among themselves, so that a common trend over the run cannot look like a prediction.
    """

    correlations: list[float] = field(default_factory=list)
    total: int = 0

    def add(self, predicted: Sequence[float], measured: Sequence[float]) -> float:
        """Take one audit in; returns its correlation."""
        self.correlations = [*self.correlations, spearman(predicted, measured)][-WINDOW:]
        self.total += 1
        return self.correlations[-1]

    @property
    def correlation(self) -> float:
        """Mean over the window; 0 before the first audit."""
        return sum(self.correlations) / len(self.correlations) if self.correlations else 0.0

    @property
    def verdict(self) -> Verdict:
        """`active` when the mean correlation is at least `THRESHOLD`."""
        if len(self.correlations) < LEAST:
            return "undecided"
        return "active" if self.correlation >= THRESHOLD else "inactive"
