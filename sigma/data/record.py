"""What flows from a source to the packer: records, and the position in an endless source of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from sigma.core.errors import SigmaError

Cursor = dict[str, Any]  # plain JSON, a few bytes


class DataError(SigmaError):
    """Training data that is damaged, absent or different from what a checkpoint was made with."""


@dataclass(frozen=True)
class Record:
    """One document. (source, id) is unique within an epoch of the source."""

    source: str
    id: str
    text: str


class Source(Protocol):
    """An endless iterator of records; epochs happen inside. After `seek(cursor())` it goes on with the same record."""

    @property
    def name(self) -> str: ...

    def __next__(self) -> Record: ...

    def cursor(self) -> Cursor:
        """Position of the next record."""
        ...

    def seek(self, cursor: Cursor) -> None: ...
