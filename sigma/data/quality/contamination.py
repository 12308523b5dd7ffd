"""The contamination guard: training documents that share 13 consecutive words with a held-out text are dropped.

As in GPT-3 (Brown et al., 2020, appendix C), but a whole document goes where GPT-3 cuts out the surroundings. The
held-out texts are kept as a sorted file of 64-bit hashes of their runs of 13 normalised words (`words.py`), so that
the file says nothing readable about them. A text of fewer words gives no hash and is not guarded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sigma.core.files import write_atomic
from sigma.data.quality.words import Ngrams, Words
from sigma.data.record import DataError

WORDS_PER_RUN = 13
SLICE = 1 << 16  # words looked at together
MAGIC = b"SIGMA13G"
VERSION = 1  # changes with normalisation and hash
_HEAD = struct.Struct("<8sII")  # magic, version, words of a run; the hashes follow, uint64 in little endian
_HASH = np.dtype("<u8")


def run_hashes(words: Words) -> np.ndarray:
    """One hash for each run of 13 words of a text, uint64."""
    return words.ngrams[WORDS_PER_RUN]


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """The sorted hashes of all runs of 13 words in some texts, each once."""
    found = [run_hashes(Words(text)) for text in texts]
    return np.unique(np.concatenate([*found, np.empty(0, dtype=np.uint64)]))


def write_hashes(path: Path, texts: Iterable[str]) -> int:
    """Write the file of the hashes of some held-out texts; returns how many there are."""
    hashes = hashes_of(texts).astype(_HASH)
    write_atomic(path, _HEAD.pack(MAGIC, VERSION, WORDS_PER_RUN) + hashes.tobytes())
    return len(hashes)


def open_hashes(path: Path) -> np.ndarray:
    """The hashes of a file, mapped into memory. Raises DataError when it is no such file."""
    try:
        size = path.stat().st_size - _HEAD.size
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
    except OSError as error:
        raise DataError(f"{path}: cannot read the hashes of held-out texts ({error.strerror}).") from error
    if head != _HEAD.pack(MAGIC, VERSION, WORDS_PER_RUN) or size % _HASH.itemsize:
        raise DataError(f"{path}: not a file of 13-word hashes of this version; write it again from the texts.")
    if not size:
        return np.empty(0, dtype=np.uint64)
    return np.memmap(path, dtype=_HASH, mode="r", offset=_HEAD.size)


class Contamination:
    """Whether a text shares a run of 13 words with held-out texts."""

    def __init__(self, hashes: Sequence[np.ndarray]) -> None:
        """`hashes`: sorted arrays, in memory or mapped from a file."""
        self._sets = [one for one in hashes if len(one)]
        self._maybe = [_Filter(one) for one in self._sets]

    def hit(self, words: Words) -> bool:
        """Whether any run of the text is held out."""
        if len(words) <= SLICE:
            return self._any(run_hashes(words))
        starts = range(0, len(words) - WORDS_PER_RUN + 1, SLICE)
        pieces = (words.hash_N[at : at + SLICE + WORDS_PER_RUN - 1] for at in starts)
        return any(self._any(Ngrams(piece)[WORDS_PER_RUN]) for piece in pieces)

    def _any(self, hashes: np.ndarray) -> bool:
        for held_out, maybe in zip(self._sets, self._maybe, strict=True):
            rest = maybe.of(hashes)
            place = np.minimum(np.searchsorted(held_out, rest), len(held_out) - 1)
            if np.any(held_out[place] == rest):
                return True
        return False


class _Filter:
    """Which hashes may occur: two small tables, of the beginnings and of the ends of those that do (a Bloom filter with
    two functions). A search among all of them, which misses the cache at every turn, is left for few.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        bits = min(29, max(10, len(hashes).bit_length() + 4))
        self._shift, self._mask = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        self._first, self._last = _table(hashes >> self._shift, bits), _table(hashes & self._mask, bits)

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """Those that may occur."""
        hashes = hashes[_holds(self._first, hashes >> self._shift)]
        return hashes[_holds(self._last, hashes & self._mask)]


def _table(places: np.ndarray, bits: int) -> np.ndarray:
    there = np.zeros(1 << bits, dtype=bool)
    there[places] = True
    return np.packbits(there, bitorder="little")


def _holds(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    return (table[places >> np.uint64(3)] >> (places & np.uint64(7)).astype(np.uint8) & np.uint8(1)).astype(bool)
