"""A place in the stream of batches: what a checkpoint says about it, and the document that it stands in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sigma.data.mixture import Turn
from sigma.data.quality.duplicates import Duplicates
from sigma.data.record import Cursor

NO_IDS = np.empty(0, dtype=np.int32)
NONE_KEPT = np.empty((0, Duplicates.width), dtype=np.int64)


@dataclass(frozen=True)
class Position:
    """A place between two batches. `remainder` int32 [n] are the ids of the current document that are not used up."""

    state: Cursor
    remainder: np.ndarray
    kept: np.ndarray  # signatures of the documents that began in the batch before it, int64 [n, width]


@dataclass
class Current:
    """The document that is being packed; `offset` pairs of it are used up."""

    turn: Turn
    source: str
    name: tuple[str, str]
    ids: np.ndarray
    offset: int = 0

    @property
    def used_up(self) -> bool:
        return self.offset == len(self.ids) - 1

    @property
    def remainder(self) -> np.ndarray:
        return self.ids[self.offset :]

    def state_dict(self) -> Cursor:
        """Plain JSON, without the remainder."""
        return {"group": self.turn.group, "owed": self.turn.owed, "source": self.source, "name": list(self.name)}

    @classmethod
    def of(cls, state: Cursor, remainder: np.ndarray) -> Current:
        """The document of a `state_dict` and its remainder."""
        return cls(Turn(state["group"], state["owed"]), state["source"], tuple(state["name"]), remainder)
