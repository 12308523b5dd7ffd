"""The endless stream of packed training batches, and the position in it.

The position is a small dict of plain JSON: a cursor per source, how many tokens each source gave, and how far the
current document is used up. Tokens are not part of it: the current document is read and tokenised again on resume.
Each batch travels with the position after it, so what was prepared ahead never counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma.data.corpus import CorpusSource, load_corpus
from sigma.data.generators import FAMILIES, GeneratorSource
from sigma.data.mix import ShareMixer
from sigma.data.packing import Batch, BatchBuilder, document_ids
from sigma.data.prefetch import Prefetcher
from sigma.data.record import Cursor, DataError, Source
from sigma.data.tokenizer import Tokenizer

SMALLEST_SHARE = 1e-9  # 1 - 0.9 - 0.1 is not exactly 0


class BatchStream:
    """Batches of `rows` x `length` from several sources, mixed by token share."""

    def __init__(
        self,
        sources: Sequence[Source],
        shares: Sequence[float],
        tokenizer: Tokenizer,
        *,
        rows: int,
        length: int,
        prefetch: int = 0,
        identity: str = "",
    ) -> None:
        self._sources = list(sources)
        self._mixer = ShareMixer(shares)
        self._tokenizer = tokenizer
        self._rows, self._length, self._prefetch = rows, length, prefetch
        names = [[source.name, share] for source, share in zip(sources, self._mixer.shares, strict=True)]
        self._identity = hashlib.sha256(f"{identity} {tokenizer.fingerprint} {names}".encode()).hexdigest()[:16]
        self._prefetcher: Prefetcher[tuple[Batch, Cursor]] | None = None
        self._stale = False  # the sources stand ahead of the position: seek before going on
        self._ids = np.empty(0, dtype=np.int32)  # the current document
        self._offset = 0  # pairs of it that are used up
        self._current: tuple[int, Cursor, tuple[str, str]] | None = None  # its source, the cursor before it, its name
        self._position = self._cursor()

    def next_batch(self) -> Batch:
        """The next batch. Raises DataThreadError when the data thread failed."""
        if self._stale:
            self._seek(self._position)
        if not self._prefetch:
            batch, self._position = self._produce()
            return batch
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._produce, self._prefetch)
        batch, self._position = self._prefetcher.get()
        return batch

    def state_dict(self) -> Cursor:
        """The position after the last batch that `next_batch` returned."""
        return self._position

    def load_state_dict(self, state: Cursor) -> None:
        """Go to a position. Raises DataError when it belongs to other texts, shares, seed or tokenizer."""
        if state.get("identity") != self._identity:
            raise DataError(
                "the saved data position belongs to another corpus, mixture, seed or tokenizer; resume with the "
                "arguments that the run was started with, or start a new run in another --output-dir."
            )
        self.close()
        self._seek(state)

    def close(self) -> None:
        """Join the data thread. A later `next_batch` goes on from the same position."""
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher, self._stale = None, True

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_prefetcher": None, "_stale": True}

    def _seek(self, position: Cursor) -> None:
        for source in self._sources:
            source.seek(position["sources"][source.name])
        self._mixer.counts = list(position["counts"])
        self._current = None
        if position["document"]:
            index, offset = position["document"]
            self._open(index)
            self._offset = offset
        self._position, self._stale = position, False

    # -------------------------------------------------------------- runs in the data thread
    def _open(self, index: int) -> None:
        """Read the next document of a source."""
        before = self._sources[index].cursor()
        record = next(self._sources[index])
        self._ids = document_ids(self._tokenizer.encode(record.text))
        self._current = (index, before, (record.source, record.id))
        self._offset = 0

    def _produce(self) -> tuple[Batch, Cursor]:
        builder, ended = BatchBuilder(self._rows, self._length), []
        while builder.room:
            if self._current is None:
                self._open(self._mixer.choose())
            assert self._current is not None
            index, _, name = self._current
            after = builder.add(self._ids, self._offset)
            self._mixer.add(index, after - self._offset)
            self._offset = after
            if after == len(self._ids) - 1:
                ended.append(name)
                self._current = None
        return builder.finish(ended, self._tokenizer.byte_length_V), self._cursor()

    def _cursor(self) -> Cursor:
        cursors = {source.name: source.cursor() for source in self._sources}
        document = None
        if self._current is not None:
            index, before, _ = self._current
            cursors[self._sources[index].name] = before
            document = [index, self._offset]
        return {
            "identity": self._identity,
            "sources": cursors,
            "counts": list(self._mixer.counts),
            "document": document,
        }


def build_stream(data: DataSection, seed: int, tokenizer: Tokenizer, batch_size: int) -> BatchStream:
    """The stream of a resolved data section: natural text, code and the generators at their shares of tokens.

    `batch_size` is the number of rows of a batch, each of `data.seq_len` positions. Raises ConfigError when the
    shares add up to more than 1, and when `seq_len` is not resolved.
    """
    natural = 1 - data.code_ratio - data.synthetic_ratio
    if natural < -SMALLEST_SHARE:
        raise ConfigError(
            f"--code-ratio {data.code_ratio} and --synthetic-ratio {data.synthetic_ratio} add up to more than 1; "
            "lower one of them."
        )
    if data.seq_len is None:
        raise ConfigError("--seq-len has no value; choose a preset or give a number.")
    corpus = load_corpus()
    synthetic = data.synthetic_ratio / len(FAMILIES)
    candidates: list[tuple[Source, float]] = [
        (CorpusSource("natural", corpus, seed), natural),
        (CorpusSource("code", corpus, seed), data.code_ratio),
        *((GeneratorSource(family, seed), synthetic) for family in FAMILIES),
    ]
    chosen = [(source, share) for source, share in candidates if share > SMALLEST_SHARE]
    return BatchStream(
        [source for source, _ in chosen],
        [share for _, share in chosen],
        tokenizer,
        rows=batch_size,
        length=data.seq_len,
        prefetch=data.source_prefetch,
        identity=f"{corpus.fingerprint} {seed}",
    )
