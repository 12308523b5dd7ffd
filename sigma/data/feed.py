"""The next documents of one source: read, gated and tokenised ahead in worker threads, handed out in their order.

What a document is does not depend on the workers: the gate and the tokenizer look at one record at a time. The
position moves with the documents that are taken, not with what is prepared.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from sigma.data.packing import document_ids
from sigma.data.quality.gate import Verdict
from sigma.data.record import Cursor, Damaged, DataError, Record, Source, Unavailable
from sigma.data.tokenizer import Tokenizer

CHUNK_RECORDS = 64
CHUNK_CHARACTERS = 1 << 18  # a chunk ends behind the record that reaches it
KEPT = Verdict(None)
_NOTHING = np.empty(0, dtype=np.int32)


class Gate(Protocol):
    """Decides about one record, whatever came before it. Called in worker threads."""

    fingerprint: str

    def examine(self, record: Record) -> Verdict: ...


@dataclass(frozen=True)
class Item:
    """A record as it was read, the cursor behind it, the blocks that were left out before it, and all counts so far."""

    record: Record
    after: Cursor
    damage: tuple[Damaged, ...]
    skipped: Counter[str]


@dataclass(frozen=True)
class Document:
    """bos + tokens + eos of a record that the gate kept.

    `after` is the source's cursor behind it. `dropped` counts by reason what the gate dropped since the document
    before, `damage` are the blocks that were left out since then, `skipped` all that the source left out so far.
    """

    name: tuple[str, str]
    ids: np.ndarray
    after: Cursor
    signature: np.ndarray | None
    dropped: Counter[str]
    damage: tuple[Damaged, ...]
    skipped: Counter[str]


@dataclass
class Chunk:
    """Some prepared documents, and what was dropped and left out behind the last of them."""

    documents: list[Document]
    dropped: Counter[str]
    damage: tuple[Damaged, ...]


class Feed:
    """Documents of a source. Only its worker function runs in other threads than the caller's."""

    def __init__(self, source: Source, tokenizer: Tokenizer, gate: Gate | None = None, *, strict: bool = False) -> None:
        """Of a `strict` source an error that is not Unavailable stops the run: its user can mend it."""
        self.name = source.name
        self.source = source
        self.remote = hasattr(source, "ready")
        self.fingerprint = "" if gate is None else f"{getattr(source, 'fingerprint', '')} {gate.fingerprint}"
        self._strict = strict
        self._tokenizer, self._gate = tokenizer, gate
        self._pool: Executor | None = None
        self._depth = 1
        self._damage: list[Damaged] = []
        if self.remote:
            source.on_damage = self._damage.append  # pyright: ignore[reportAttributeAccessIssue]
        self._failure: str | None = None
        self._broken = False  # for good: the files are not those of the cursor
        self._cursor = source.cursor()
        self._clear()

    def start(self, pool: Executor | None, depth: int) -> None:
        """Prepare `depth` chunks ahead in `pool`; without one, a chunk at a time in the calling thread."""
        self._pool, self._depth = pool, depth

    def cursor(self) -> Cursor:
        """Position behind the last document that was taken."""
        return self._cursor

    def seek(self, cursor: Cursor, known_damage: dict[tuple[str, int], Damaged] | None = None) -> None:
        """Go to a position; what was prepared is forgotten. Blocks of `known_damage` are left out again."""
        self._clear()
        self._broken, self._failure = False, None
        if self.remote:
            self.source.known_damage = known_damage or {}  # pyright: ignore[reportAttributeAccessIssue]
        self.source.seek(cursor)
        self._cursor = cursor

    def _clear(self) -> None:
        self._chunks: deque[Future[Chunk] | Chunk] = deque()
        self._documents: deque[Document] = deque()
        self._dropped: Counter[str] = Counter()
        self._left_out: tuple[Damaged, ...] = ()
        self._damage.clear()

    @property
    def failure(self) -> str | None:
        """Why the source gives nothing now; None while it works, and for local sources."""
        return self._failure or (self.source.failure if self.remote else None)  # pyright: ignore

    @property
    def busy(self) -> bool:
        """Whether workers have records of this source in hand."""
        return bool(self._chunks)

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Whether `take` has a document, after waiting at most about `timeout_s` for source and workers."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._fill()
            while self._chunks and not self._documents and self._is_done(0.0):
                self._adopt()
            left_s = deadline - time.monotonic()
            if self._documents or left_s <= 0:
                return bool(self._documents)
            if self._chunks:
                self._is_done(left_s)
            else:
                self._has_next(left_s)

    def take(self) -> Document:
        """The next document. Raises Unavailable when there is none now; a local source always has one."""
        while not self.ready(0.0 if self.remote else 1.0):
            if self.remote:
                raise Unavailable(self.name, self.failure or "no document is ready")
        document = self._documents.popleft()
        self._cursor = document.after
        return document

    def close(self) -> None:
        """Stop reading; a seek is needed before going on."""
        if self.remote:
            self.source.close()  # pyright: ignore[reportAttributeAccessIssue]

    # -------------------------------------------------------------- reading
    def _has_next(self, timeout_s: float) -> bool:
        """Whether the source gives a record at once."""
        if self._broken:
            time.sleep(timeout_s)
            return False
        return not self.remote or self.source.ready(timeout_s)  # pyright: ignore[reportAttributeAccessIssue]

    def _fill(self) -> None:
        """Begin as many chunks as may wait; without workers one at a time, when it is needed."""
        while len(self._chunks) < self._depth and not (self._pool is None and self._documents):
            items = self._read()
            if not items:
                break
            self._chunks.append(self._pool.submit(self._prepare, items) if self._pool else self._prepare(items))

    def _read(self) -> list[Item]:
        items: list[Item] = []
        characters = 0
        while len(items) < CHUNK_RECORDS and characters < CHUNK_CHARACTERS and self._has_next(0.0):
            try:
                record = next(self.source)
            except DataError as error:
                if not self.remote or (self._strict and not isinstance(error, Unavailable)):
                    raise
                self._broken = not isinstance(error, Unavailable)
                self._failure = error.reason if isinstance(error, Unavailable) else str(error)
                return items
            self._failure = None
            items.append(Item(record, self.source.cursor(), tuple(self._damage), self._skipped()))
            self._damage.clear()
            characters += len(record.text)
        return items

    def _skipped(self) -> Counter[str]:
        return Counter(self.source.skipped) if self.remote else Counter()  # pyright: ignore

    def _is_done(self, timeout_s: float) -> bool:
        """Whether the first chunk that waits is prepared, after at most `timeout_s`."""
        first = self._chunks[0]
        return isinstance(first, Chunk) or bool(wait([first], timeout_s).done)

    def _adopt(self) -> None:
        """Take over the first chunk that waits."""
        first = self._chunks.popleft()
        if isinstance(first, Future):
            first = first.result()
        if first.documents and (self._dropped or self._left_out):
            document = first.documents[0]
            dropped, damage = self._dropped + document.dropped, self._left_out + document.damage
            first.documents[0] = replace(document, dropped=dropped, damage=damage)
            self._dropped, self._left_out = Counter(), ()
        self._documents.extend(first.documents)
        self._dropped += first.dropped
        self._left_out += first.damage

    # -------------------------------------------------------------- runs in a worker
    def _prepare(self, items: Sequence[Item]) -> Chunk:
        kept: list[Document] = []
        texts: list[str] = []
        dropped: Counter[str] = Counter()
        damage: tuple[Damaged, ...] = ()
        for item in items:
            record, damage = item.record, damage + item.damage
            verdict = KEPT if self._gate is None else self._gate.examine(record)
            if verdict.reason is not None:
                dropped[verdict.reason] += 1
                continue
            name = (record.source, record.id)
            kept.append(Document(name, _NOTHING, item.after, verdict.signature, dropped, damage, item.skipped))
            texts.append(record.text)
            dropped, damage = Counter(), ()
        tokens = self._tokenizer.encode_batch(texts)
        documents = [replace(one, ids=document_ids(ids)) for one, ids in zip(kept, tokens, strict=True)]
        return Chunk(documents, dropped, damage)
