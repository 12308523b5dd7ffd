"""The endless stream of packed training batches, and the position in it.

Whose turn it is, is a function of the tokens given so far; the document comes from the source whose turn it is, or
from one that stands in for it (`outages`, `journal`); near-duplicates are left out in this one order; the tokens are
packed. Neither threads nor ranks change any of it. The position is plain JSON and two arrays: a cursor per source, the
counts of tokens, the rest of the current document, the signatures of the last documents. Each batch travels with the
position behind it, so what was prepared ahead never counts.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigma.data.feed import Document, Feed
from sigma.data.journal import Journal
from sigma.data.mixture import Group, Mixture, Turn
from sigma.data.outages import Outages
from sigma.data.packing import Batch, BatchBuilder
from sigma.data.position import NO_IDS, NONE_KEPT, Current, Position
from sigma.data.prefetch import Prefetcher
from sigma.data.quality.duplicates import Duplicates
from sigma.data.recent import Recent
from sigma.data.record import Cursor, DataError
from sigma.data.stream_settings import StreamSettings
from sigma.data.tally import DUPLICATE, Tally, columns
from sigma.data.tokenizer import Tokenizer

WARM_BATCHES = 64  # so many batches before the bundled ones end, the other sources begin to read

Listener = Callable[..., None]  # event, details


class StopWaitingError(DataError):
    """The run was asked to end while it waited for data."""


class BatchStream:
    """Batches from groups of sources, mixed by token share."""

    def __init__(
        self,
        groups: Sequence[Group],
        tokenizer: Tokenizer,
        settings: StreamSettings,
        *,
        identity: str = "",
    ) -> None:
        if settings.rows % settings.world:
            raise ValueError(f"{settings.rows} rows cannot be shared by {settings.world} ranks")
        self._mixture, self._tokenizer, self._settings = Mixture(groups), tokenizer, settings
        text = f"{identity} {tokenizer.fingerprint} {self._mixture.identity}"
        self._identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._feeds = {feed.name: feed for feed in self._mixture.feeds()}
        self._remote = [feed for feed in self._feeds.values() if feed.remote]
        self._duplicates = Duplicates(settings.dedup_window)
        self._recent = Recent(settings.dedup_window, Duplicates.width)
        path = settings.journal if self._remote else None
        self._journal = Journal(path, self._identity, follow=settings.rank > 0, fresh=settings.fresh)
        self._outages = Outages(self._journal, settings.limits, self._tell, self._pause)
        self._tally, self._current = Tally(), None
        self._at = self._batches = 0  # documents and batches so far
        self._pool: ThreadPoolExecutor | None = None
        self._prefetcher: Prefetcher[tuple[Batch, Position]] | None = None
        self._stale = True  # the sources do not stand at the position: seek before going on
        self._closing = False
        self._events: deque[tuple[str, dict[str, Any]]] = deque()
        self._listener: Listener | None = None
        self._should_stop: Callable[[], bool] = bool
        self._loaded: Mapping[str, Tensor] = {}
        self._position = self._position_now([])

    def listen(self, listener: Listener, should_stop: Callable[[], bool]) -> None:
        """Tell `listener(event, **details)` what happens to sources, in the thread that asks for batches.

        When `should_stop` becomes true, waiting for sources ends with StopWaitingError.
        """
        self._listener, self._should_stop = listener, should_stop

    def next_batch(self) -> Batch:
        """The next batch. Raises DataThreadError when the data thread failed, StopWaitingError."""
        if self._stale:
            self._restart()
        if not self._settings.prefetch:
            batch, position = self._produce()
        else:
            if self._prefetcher is None:
                self._prefetcher = Prefetcher(self._produce, self._settings.prefetch)
            batch, position = self._prefetcher.get(self._while_waiting)
        self._recent.add(position.kept)
        self._position = position
        self._deliver()
        return batch

    def state_dict(self) -> Cursor:
        """The position behind the last batch that `next_batch` returned; `tensors` belong to it."""
        return self._position.state

    def tensors(self) -> dict[str, Tensor]:
        """The rest of the current document, and the signatures that near-duplicates are recognised by."""
        rest, signatures = self._position.remainder.copy(), self._recent.rows()
        return {"remainder": torch.from_numpy(rest), "signatures": torch.from_numpy(signatures)}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """First half of going to a position: its `tensors`."""
        self._loaded = tensors

    def load_state_dict(self, state: Cursor) -> None:
        """Second half. Raises DataError when the position belongs to other texts, shares, seed or tokenizer."""
        if state.get("identity") != self._identity:
            raise DataError(
                "the saved data position belongs to another corpus, mixture, seed or tokenizer; resume with the "
                "arguments that the run was started with, or start a new run in another --output-dir."
            )
        self.close()
        self._recent.load(self._loaded["signatures"].numpy())
        self._position = Position(state, self._loaded["remainder"].numpy(), NONE_KEPT)
        self._loaded, self._stale = {}, True

    def columns(self) -> dict[str, int]:
        """Columns of a metrics row: tokens by source, substitutions, what was dropped and why."""
        state = self._position.state
        outages = (
            {f"data_{name}": state["outages"][name] for name in ("outages", "divergences")} if self._remote else {}
        )
        return columns(state["tally"]) | outages

    def close(self) -> None:
        """Join the threads. A later `next_batch` goes on from the same position."""
        self._closing = True
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        if not self._stale and self._remote:
            with ThreadPoolExecutor(len(self._remote)) as pool:  # a name lookup can take seconds to give up
                list(pool.map(Feed.close, self._remote))
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._stale, self._closing = True, False

    def _restart(self) -> None:
        """Go to the position, whatever was prepared."""
        workers = self._settings.workers
        self._pool = ThreadPoolExecutor(workers, "sigma-worker") if workers else None
        state, remainder = self._position.state, self._position.remainder
        self._journal.open(state["journal"], state["at"])
        for name, feed in self._feeds.items():
            feed.start(self._pool, workers + 1)
            feed.seek(state["sources"][name], self._journal.known_damage(name))
        self._mixture.load_state_dict(state["mixture"])
        self._outages.load_state_dict(state["outages"])
        self._tally.load_state_dict(state["tally"])
        self._at, self._batches, self._current = state["at"], state["batches"], None
        if (document := state["document"]) is not None:
            self._current = Current.of(document, remainder)
        self._duplicates.load(self._recent.rows())
        self._stale = False

    # -------------------------------------------------------------- in the thread that asks for batches
    def _while_waiting(self) -> None:
        self._deliver()
        if self._should_stop():
            raise StopWaitingError("the run was asked to end while it waited for data.")

    def _deliver(self) -> None:
        while self._events:
            event, details = self._events.popleft()
            if self._listener is not None:
                self._listener(event, **details)

    # -------------------------------------------------------------- in the data thread
    def _tell(self, event: str, **details: Any) -> None:
        self._events.append((event, details))

    def _pause(self) -> None:
        """Called again and again while a source is waited for."""
        if self._closing:
            raise StopWaitingError("closed while waiting for data.")
        if not self._settings.prefetch:
            self._while_waiting()

    def _produce(self) -> tuple[Batch, Position]:
        settings = self._settings
        builder, kept = BatchBuilder(settings.rows, settings.length), []
        self._outages.begin_batch(self._batches)
        self._warm()
        while builder.room:
            if self._current is None:
                self._current = self._next_document(kept)
            current = self._current
            after = builder.add(current.ids, current.offset)
            self._mixture.add(current.turn, current.source, after - current.offset)
            self._tally.tokens[current.source] += after - current.offset
            current.offset = after
            if current.used_up:
                builder.end(current.name)
                self._current = None
        self._write_down(builder)
        batch = builder.finish(self._tokenizer.byte_length_V, settings.rank, settings.world)
        return batch, self._position_now(kept)

    def _warm(self) -> None:
        """Keep the remote sources reading, from shortly before they are needed."""
        left = self._settings.bootstrap - self._batches
        for feed in self._remote if left <= WARM_BATCHES else ():
            feed.ready()
            if left > 0:
                self._outages.notice(feed)

    def _next_document(self, kept: list[np.ndarray]) -> Current:
        """The document that comes next; of near-duplicates the next one in the same turn."""
        turn = self._mixture.turn()
        while True:
            feed = self._pick(turn)
            document = feed.take()
            self._note(feed, document)
            self._at += 1
            if not self._duplicates.seen(document.signature):
                break
            self._tally.dropped[DUPLICATE] += 1
        if document.signature is not None:
            kept.append(document.signature)
        if feed is not self._mixture.groups[turn.group].feeds[turn.owed]:
            self._tally.substitutions += 1
        return Current(turn, feed.name, document.name, document.ids)

    def _pick(self, turn: Turn) -> Feed:
        """The feed whose turn it is, or the first that can stand in for it."""
        group = self._mixture.groups[turn.group]
        if group.standby is None:
            return group.feeds[turn.owed]
        if self._batches < self._settings.bootstrap:
            return group.standby
        ready = (feed for feed in self._mixture.candidates(turn) if self._outages.gives(feed, self._at))
        return next(ready, group.standby)

    def _note(self, feed: Feed, document: Document) -> None:
        """Count and write down what was left out before a document."""
        self._tally.take(feed.name, document)
        if not feed.remote:
            return
        known = self._journal.knows(self._at, self._pause)
        if known and not self._journal.agrees_on_damage(self._at, feed.name, document.damage):
            self._outages.diverge(self._at, feed.name, "other blocks are damaged than before")
        for damage in document.damage:
            self._journal.damaged(self._at, feed.name, damage)

    def _write_down(self, builder: BatchBuilder) -> None:
        """The batch is complete: everything that it depends on stands in the journal."""
        number, self._batches = self._batches, self._batches + 1
        if self._journal.path is None:
            return
        shape, sha = (builder.rows, builder.length), builder.sha()
        if not self._journal.agrees_on_batch(number, *shape, sha):
            if self._journal.follow:
                raise DataError(f"rank {self._settings.rank} made another batch {number} than rank 0.")
            self._outages.diverge(
                self._at, None, f"batch {number} has other tokens than before; the files have changed"
            )
        self._journal.batch(self._at, number, *shape, sha)

    def _position_now(self, kept: list[np.ndarray]) -> Position:
        current = self._current
        state = {
            "identity": self._identity,
            "sources": {name: feed.cursor() for name, feed in self._feeds.items()},
            "mixture": self._mixture.state_dict(),
            "document": None if current is None else current.state_dict(),
            "at": self._at,
            "batches": self._batches,
            "journal": self._journal.position(self._at),
            "outages": self._outages.state_dict(),
            "tally": self._tally.state_dict(),
        }
        remainder = NO_IDS if current is None else current.remainder
        return Position(state, remainder, np.stack(kept) if kept else NONE_KEPT)
