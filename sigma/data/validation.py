"""The held-out text, cut into windows in which every text token is scored exactly once.

The split is by document and stands in the archives. The windows of a passage: its first token is predicted from bos,
and each window after the first begins with the last token of the one before as context. eos is no text and is not
scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sigma.data.corpus import Corpus, Kind, load_corpus
from sigma.data.record import Record
from sigma.data.tokenizer import BOS, PAD, Tokenizer
from sigma_kernels.cross_entropy.reference import IGNORED_LABEL


@dataclass
class ValidationBatch:
    """Rows of T positions. A full window is a row; shorter ones share rows as segments; the rest of a row is padding.

    `positions_BT` is the place of a position inside its window (the context that the model has), `label_bytes_BT` the
    UTF-8 bytes of its label. Padding: label -100, segment -1, position -1, 0 bytes; it has its own entry in
    `cu_seqlens`.
    """

    input_ids_BT: Tensor
    labels_BT: Tensor
    segments_BT: Tensor
    positions_BT: Tensor
    label_bytes_BT: Tensor
    cu_seqlens: Tensor
    tokens: int
    text_bytes: int


class Validation:
    """Held-out documents of the bundled corpus for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, corpus: Corpus | None = None) -> None:
        self._tokenizer = tokenizer
        self._corpus = corpus or load_corpus()

    def documents(self, kind: Kind = "natural") -> list[Record]:
        """The held-out passages in the order of the hashes of their names, so that any beginning mixes all sources."""
        records = self._corpus.records(kind, validation=True)
        return sorted(records, key=lambda row: hashlib.sha256(f"{row.source} {row.id}".encode()).digest())

    def text(self, kind: Kind = "natural") -> bytes:
        """All held-out text of a kind as UTF-8, in reading order (compressors profit from it), without separators."""
        return "".join(record.text for record in self._corpus.records(kind, validation=True)).encode()

    def windows(self, length: int, kind: Kind = "natural", max_tokens: int | None = None) -> Iterator[np.ndarray]:
        """Windows of at most `length` pairs (length + 1 ids), int32; only the first `max_tokens` pairs if given."""
        left = np.inf if max_tokens is None else max_tokens
        for record in self.documents(kind):
            ids = np.concatenate([[BOS], self._tokenizer.encode(record.text)]).astype(np.int32)
            for start in range(0, len(ids) - 1, length):
                window = ids[start : start + int(min(length, left)) + 1]
                yield window
                left -= len(window) - 1
                if left <= 0:
                    return

    def batches(
        self, rows: int, length: int, kind: Kind = "natural", max_tokens: int | None = None
    ) -> Iterator[ValidationBatch]:
        """Batches of at most `rows` rows; `max_tokens` gives the fixed subset that is scored during training."""
        full: list[list[np.ndarray]] = []
        shared: list[np.ndarray] = []  # the row that short windows fill
        for window in self.windows(length, kind, max_tokens):
            if len(window) - 1 == length:
                full.append([window])
            else:
                if sum(len(other) - 1 for other in shared) + len(window) - 1 > length:
                    full.append(shared)
                    shared = []
                shared.append(window)
            if len(full) >= rows:
                yield self._batch(full[:rows], length)
                full = full[rows:]
        full += [shared] if shared else []
        for start in range(0, len(full), rows):
            yield self._batch(full[start : start + rows], length)

    def _batch(self, rows: list[list[np.ndarray]], length: int) -> ValidationBatch:
        """Rows of windows as tensors."""
        shape = (len(rows), length)
        inputs, labels = np.full(shape, PAD, dtype=np.int64), np.full(shape, IGNORED_LABEL, dtype=np.int64)
        segments, positions = np.full(shape, -1, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
        starts: list[int] = []
        for row, windows in enumerate(rows):
            at = 0
            for segment, window in enumerate(windows):
                place = slice(at, at + len(window) - 1)
                inputs[row, place], labels[row, place] = window[:-1], window[1:]
                segments[row, place], positions[row, place] = segment, np.arange(len(window) - 1)
                starts.append(row * length + at)
                at += len(window) - 1
            if at < length:
                starts.append(row * length + at)
        label_bytes = np.where(labels == IGNORED_LABEL, 0, self._tokenizer.byte_length_V[np.maximum(labels, 0)])
        return ValidationBatch(
            *(torch.from_numpy(array) for array in (inputs, labels, segments, positions, label_bytes)),
            cu_seqlens=torch.tensor([*starts, len(rows) * length], dtype=torch.int32),
            tokens=int((labels != IGNORED_LABEL).sum()),
            text_bytes=int(label_bytes.sum()),
        )
