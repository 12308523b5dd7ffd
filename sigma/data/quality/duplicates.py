"""Near-duplicates among the last documents: MinHash (Broder, 1997) of word shingles, found by bands (LSH; Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, 3.4), with shingles of 5 words and bands of 8 values as in FineWeb.

Two documents share a band with probability 1 - (1 - J^8)^9 for the Jaccard similarity J of their shingles: 0.994 at
J = 0.9, 0.81 at 0.8, 0.035 at 0.5. Signatures depend on the text alone and can be made anywhere; which document came
first is decided in one order, by `Duplicates`.
"""

from __future__ import annotations

import hashlib

import numpy as np

from sigma.data.quality.words import Words, mix

SHINGLE_WORDS = 5
BANDS, BAND_VALUES = 9, 8
_DRAWS = np.random.Philox(key=0x51474D41).random_raw((2, BANDS * BAND_VALUES, 1))  # raw words never change
_XOR_K1 = (_DRAWS[0] >> np.uint64(32)).astype(np.uint32)
_ODD_K1 = (_DRAWS[1] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_BAND_ODD = np.random.Philox(key=0x42414E44).random_raw(BAND_VALUES) | np.uint64(1)
_BAND_NUMBER = np.arange(BANDS, dtype=np.uint64)


def signature(source: str, name: str, words: Words, most_bytes: int) -> np.ndarray | None:
    """What `Duplicates` compares of a document, int64 [10]: who it is, then nine hashes of its shingles.

    Only the first `most_bytes` of the normalised text count. None for fewer than 5 words: too little to compare.
    """
    last = int(np.searchsorted(words.start_N, most_bytes)) - SHINGLE_WORDS + 1
    shingles = words.ngrams[SHINGLE_WORDS][: max(last, 0)]
    if not len(shingles):
        return None
    values = (shingles >> np.uint64(32)).astype(np.uint32)
    values_KN = values ^ _XOR_K1
    values_KN *= _ODD_K1  # K hash functions
    least = values_KN.min(axis=1).reshape(BANDS, BAND_VALUES).astype(np.uint64)
    who = hashlib.blake2b(f"{source} {name}".encode(errors="surrogatepass"), digest_size=8).digest()
    bands = mix((least * _BAND_ODD).sum(axis=1, dtype=np.uint64) + _BAND_NUMBER)
    return np.concatenate([np.frombuffer(who, dtype="<i8").astype(np.int64), bands.view(np.int64)])


class Duplicates:
    """The signatures of the last `window` documents that were kept, rows of `width` 64-bit words.

    For 65,536 documents that is 5.2 MB in a checkpoint (80 bytes each), and with the index 80 MB in memory.
    """

    width = 1 + BANDS

    def __init__(self, window: int) -> None:
        self.window = window
        self._ring = np.zeros((window, self.width), dtype=np.int64)
        self._kept = 0  # documents so far; number n stands in row n % window
        self._owner: dict[int, int] = {}  # hash of a band -> number of the last document that has it

    def seen(self, signature: np.ndarray | None) -> bool:
        """Whether the document is nearly one of the window; if not, it joins the window.

        A document that comes again under its own name (a new epoch) is no duplicate of itself.
        """
        if signature is None or not self.window:
            return False
        who, *bands = signature.tolist()
        owners = {self._owner[band] for band in bands if band in self._owner}
        if any(int(self._ring[number % self.window, 0]) != who for number in owners):
            return True
        self._join(signature, bands)
        return False

    def _join(self, signature: np.ndarray, bands: list[int]) -> None:
        row, leaver = self._kept % self.window, self._kept - self.window
        if leaver >= 0:
            for band in self._ring[row, 1:].tolist():
                if self._owner.get(band) == leaver:  # not yet of a later document
                    del self._owner[band]
        self._ring[row] = signature
        self._owner |= dict.fromkeys(bands, self._kept)
        self._kept += 1

    def load(self, signatures: np.ndarray) -> None:
        """Begin with these signatures, int64 [n, width], oldest first; of more than `window` the newest stay."""
        self._kept, self._owner = 0, {}
        for row in signatures[-self.window :] if self.window else ():
            self._join(row, row[1:].tolist())
