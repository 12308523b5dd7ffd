"""What a model has to beat on the held-out text, in bits per byte: two compressors and a bigram over the same
tokens.
"""

from __future__ import annotations

import gzip
import lzma

import numpy as np

from sigma.data.corpus import Kind
from sigma.data.stream import BatchStream
from sigma.data.validation import Validation

MERGE_AFTER = 4_000_000  # pairs that wait before they are counted


def gzip_bpb(text: bytes) -> float:
    """Bits per byte of `gzip -9` over the whole text."""
    return len(gzip.compress(text, 9, mtime=0)) * 8 / len(text)


def xz_bpb(text: bytes) -> float:
    """Bits per byte of `xz -9e` over the whole text."""
    return len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(text)


class WittenBellBigram:
    """Interpolated bigram with Witten-Bell smoothing (Witten and Bell, 1991; Chen and Goodman, 1998, equation 8).

    p(w | h) = (c(h, w) + t(h) p(w)) / (c(h) + t(h)), p(w) = (c(w) + t / V) / (n + t): c counts, t(h) is the number of
    different tokens seen after h, t the number of different tokens, n of all tokens, V the vocabulary. A context that
    was never seen leaves p(w).
    """

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._waiting: list[np.ndarray] = []
        self._keys = np.empty(0, dtype=np.int64)  # h * V + w, sorted
        self._counts = np.empty(0, dtype=np.int64)

    def count(self, contexts: np.ndarray, tokens: np.ndarray) -> None:
        """Add pairs (context, token)."""
        self._waiting.append(contexts.ravel().astype(np.int64) * self._vocabulary + tokens.ravel())
        if sum(map(len, self._waiting)) > MERGE_AFTER:
            self._merge()

    def _merge(self) -> None:
        fresh, counts = np.unique(np.concatenate([*self._waiting, np.empty(0, dtype=np.int64)]), return_counts=True)
        keys = np.concatenate([self._keys, fresh])
        self._keys, place = np.unique(keys, return_inverse=True)
        self._counts = np.bincount(place, weights=np.concatenate([self._counts, counts])).astype(np.int64)
        self._waiting = []

    def probability(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """p(token | context) elementwise, float64. All n tokens together sum to 1 for every context."""
        self._merge()
        size = self._vocabulary
        after, token = np.divmod(self._keys, size)
        unigram = np.bincount(token, weights=self._counts, minlength=size)
        kinds = np.count_nonzero(unigram)
        if not kinds:
            return np.full(tokens.shape, 1 / size)
        unigram_p = (unigram + kinds / size) / (unigram.sum() + kinds)
        context_n = np.bincount(after, weights=self._counts, minlength=size)
        context_kinds = np.bincount(after, minlength=size)
        wanted = contexts.astype(np.int64) * size + tokens
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        pairs = np.where(self._keys[place] == wanted, self._counts[place], 0)
        weight, total = context_kinds[contexts], context_n[contexts] + context_kinds[contexts]
        seen = (pairs + weight * unigram_p[tokens]) / np.maximum(total, 1)
        return np.where(total > 0, seen, unigram_p[tokens])


def bigram_bpb(
    stream: BatchStream, batches: int, validation: Validation, vocabulary: int, kind: Kind = "natural"
) -> float:
    """Bits per byte of the held-out text under a bigram of the first `batches` batches of a fresh `stream`.

    A stream built like the run's, at position zero, replays the tokens that the model saw. It is closed afterwards.
    """
    bigram = WittenBellBigram(vocabulary)
    for _ in range(batches):
        batch = stream.next_batch()
        bigram.count(batch.input_ids_BT.numpy(), batch.labels_BT.numpy())
    stream.close()
    pairs = [(window[:-1], window[1:]) for window in validation.windows(1 << 30, kind)]
    contexts, tokens = (np.concatenate(column) for column in zip(*pairs, strict=True))
    bits = -np.log2(bigram.probability(contexts, tokens)).sum()
    return float(bits / len(validation.text(kind)))
