"""The newest rows of a growing table: what a checkpoint keeps of the near-duplicate search."""

from __future__ import annotations

import numpy as np


class Recent:
    """The last `window` rows, int64 [window, width]."""

    def __init__(self, window: int, width: int) -> None:
        self._ring = np.zeros((window, width), dtype=np.int64)
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        """Append rows [n, width]; the oldest ones leave."""
        window = len(self._ring)
        rows = rows[-window:] if window else rows[:0]
        self._ring[(self._count + np.arange(len(rows))) % max(1, window)] = rows
        self._count += len(rows)

    def rows(self) -> np.ndarray:
        """A copy, the oldest first."""
        filled = min(self._count, len(self._ring))
        return self._ring[np.arange(self._count - filled, self._count) % max(1, len(self._ring))]

    def load(self, rows: np.ndarray) -> None:
        """Begin with these rows."""
        self._count = 0
        self.add(rows)
