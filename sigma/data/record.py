"""What flows from a source to the packer: records, and the position in an endless source of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sigma.core.errors import SigmaError

Cursor = dict[str, Any]  # plain JSON, a few bytes


class DataError(SigmaError):
    """Training data that is damaged, absent or different from what a checkpoint was made with."""


class Unavailable(DataError):  # noqa: N818 - a state, not a mistake
    """A source cannot be read now and may come back. Nothing of it is lost: its cursor has not moved."""

    def __init__(self, source: str, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{source}: {reason}")
        self.source, self.reason = source, reason
        self.retry_after_s = retry_after_s  # what the server asked for; 0 when it said nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.reason, self.retry_after_s)


class Missing(Unavailable):
    """A file that should be there is not. During an outage servers say so too, so it is believed only after a while."""


class Damaged(DataError):  # noqa: N818
    """A block of a file will never be readable. Reading goes on at `resume`; None is the next file."""

    def __init__(self, file: str, position: int, reason: str, resume: int | None = None) -> None:
        super().__init__(f"{file}, position {position}: {reason}")
        self.file, self.position, self.reason, self.resume = file, position, reason, resume

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.position, self.reason, self.resume)


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


class RemoteSource(Source, Protocol):
    """A source that may be slow, absent or damaged. `__next__` waits for what is being read; it raises Unavailable
    when reading failed, and then the cursor stands where it stood.
    """

    @property
    def skipped(self) -> Counter[str]:
        """Records (`damaged`: blocks) left out so far, by reason; a function of the cursor."""
        ...

    @property
    def failure(self) -> str | None:
        """Why reading failed last; None while it works."""
        ...

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Whether `next` would return at once, after waiting at most `timeout_s`. Starts reading in the background."""
        ...

    def close(self) -> None:
        """Stop reading. A later `next` goes on from the same cursor."""
        ...


@dataclass(frozen=True)
class FileRef:
    """A file of a collection; `size` in bytes, None while it is not known."""

    path: str
    size: int | None = None


@dataclass
class Block:
    """Some records that follow each other in a file, and the position after them (None: the file ends here).

    `skipped` counts what was left out, by reason; `places` says where for the first few.
    """

    records: list[Record]
    next: int | None
    skipped: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)


class Collection(Protocol):
    """A finite set of files of one source in a fixed order.

    `fingerprint` names what was asked for (repository, configuration, filters) and is known without the network: it
    is part of the stream's identity. `pin` names what was found (revision, list of files); it is None until the first
    `files`, stands in every cursor, and `pin_to` makes a resumed run read the same files again.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def pin(self) -> str | None: ...

    def pin_to(self, pin: str) -> None: ...

    def files(self) -> Sequence[FileRef]:
        """Raises Unavailable; DataError when the files are no longer those of the pin."""
        ...

    def read(self, file: int, position: int) -> Block:
        """The records from `position` on, 0 or what an earlier block gave as `next`. Raises Unavailable, Damaged."""
        ...

    def close(self) -> None:
        """Break off a read in another thread (it raises Unavailable), free what is held. Reading again is allowed."""
        ...
