"""Documents packed into rows that are always full.

A document is bos + tokens + eos. What is learned from it are its pairs (token, next token), so n + 2 ids make n + 1
pairs, and a row of T positions holds T pairs: no position is wasted, none carries a label from another document, and
eos is only ever a label. A pair that does not fit opens the next row as a new segment; its input is the last label of
the row before, so every token is predicted exactly once. State and attention do not cross segments.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sigma.data.tokenizer import BOS, EOS


@dataclass
class Batch:
    """Host tensors of one global batch, or of one rank's share of it: B rows of T positions.

    `segments_BT` counts from 0 in each row; `cu_seqlens` int32 holds the starts of all segments in the flattened B *
    T positions, and B * T. `records` names the (source, id) of every record whose last token is a label here;
    `tokens` is the number of labels and `text_bytes` the UTF-8 bytes that they stand for.
    """

    input_ids_BT: Tensor
    labels_BT: Tensor
    segments_BT: Tensor
    cu_seqlens: Tensor
    records: tuple[tuple[str, str], ...]
    tokens: int
    text_bytes: int


def document_ids(tokens: np.ndarray) -> np.ndarray:
    """bos + tokens + eos, int32."""
    ids = np.empty(len(tokens) + 2, dtype=np.int32)
    ids[0], ids[1:-1], ids[-1] = BOS, tokens, EOS
    return ids


@dataclass
class BatchBuilder:
    """Fills one batch with pairs, row after row."""

    rows: int
    length: int
    filled: int = 0
    starts: list[int] = field(default_factory=list)
    ended: list[tuple[int, tuple[str, str]]] = field(default_factory=list)  # (positions filled by then, record)

    def __post_init__(self) -> None:
        self._inputs = np.empty(self.rows * self.length, dtype=np.int64)
        self._labels = np.empty_like(self._inputs)

    @property
    def room(self) -> int:
        return self.rows * self.length - self.filled

    def add(self, ids: np.ndarray, offset: int) -> int:
        """Take pairs of the document `ids` from `offset` on, as many as fit into the batch; the offset after them."""
        while self.room and offset < len(ids) - 1:
            taken = min(self.length - self.filled % self.length, len(ids) - 1 - offset)
            place = slice(self.filled, self.filled + taken)
            self._inputs[place] = ids[offset : offset + taken]
            self._labels[place] = ids[offset + 1 : offset + taken + 1]
            self.starts.append(self.filled)
            self.filled += taken
            offset += taken
        return offset

    def end(self, record: tuple[str, str]) -> None:
        """The document that was added last is complete."""
        self.ended.append((self.filled, record))

    def sha(self) -> str:
        """Hash of all tokens of the batch, 16 hex digits."""
        return hashlib.sha256(self._inputs.tobytes() + self._labels.tobytes()).hexdigest()[:16]

    def finish(self, byte_length_V: np.ndarray, rank: int = 0, world: int = 1) -> Batch:
        """The full batch as tensors, or the rows that rank `rank` of `world` has of it."""
        rows = self.rows // world
        shape, first, last = (rows, self.length), rank * rows * self.length, (rank + 1) * rows * self.length
        inputs, labels = self._inputs[first:last], self._labels[first:last]
        starts = np.array([start for start in self.starts if first <= start < last], dtype=np.int64) - first
        opens = np.zeros(rows * self.length, dtype=np.int32)
        opens[starts] = 1
        return Batch(
            input_ids_BT=torch.from_numpy(inputs).view(shape),
            labels_BT=torch.from_numpy(labels).view(shape),
            segments_BT=torch.from_numpy(opens.reshape(shape).cumsum(1, dtype=np.int32) - 1),
            cu_seqlens=torch.from_numpy(np.append(starts, rows * self.length).astype(np.int32)),
            records=tuple(record for end, record in self.ended if first < end <= last),
            tokens=rows * self.length,
            text_bytes=int(byte_length_V[labels].sum()),
        )
