"""A text as normalised words with a 64-bit hash each, and the hashes of its n-grams: numpy over UTF-8, no Python loop
over words.

Normalised as in GPT-3's decontamination (Brown et al., 2020, appendix C): lower case, without punctuation. A Chinese
character or a kana is a word of its own, because no space separates them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

PIECE_BYTES = 1 << 20  # looked at together, so that a record of the largest size needs little beside its words
WORD_BYTES = 64  # of a longer word the hash sees the beginning and the length
SPACE = 32
FIRST_OF_KANA, LAST_OF_HAN = 0xE3, 0xE9  # what the three bytes of a kana or a Chinese character begin with
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_ORDER = np.uint64(0xA0761D6478BD642F)
_SHIFT = np.uint64(32)
_FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)

# ASCII letters as lower case, digits, and all bytes beyond ASCII stay; the rest separates words.
_TABLE = bytes(c if c > 127 or chr(c).isalnum() else SPACE for c in b"".join(bytes([c]).lower() for c in range(256)))
# Signs, spaces and punctuation beyond ASCII, by block.
_SIGNS = re.compile(
    "[\x80-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb\xbf\xd7\xf7\u2000-\u206f\u20a0-\u20cf\u2190-\u2bff\u3000-\u303f"
    "\ufe10-\ufe1f\ufe30-\ufe6f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)


def normalise(text: str) -> bytes:
    """UTF-8 in lower case in which everything that is neither letter nor digit is a space; a space at both ends.

    Raises UnicodeEncodeError for lone surrogates: that is no Unicode text.
    """
    if not text.isascii():
        text = _SIGNS.sub(" ", text).lower()
    return b"".join((b" ", text.encode().translate(_TABLE), b" " * 8))


class Ngrams:
    """Hashes of the runs of 2, 3, ... words."""

    def __init__(self, hash_N: np.ndarray) -> None:
        self._known = {1: hash_N}

    def __getitem__(self, n: int) -> np.ndarray:
        """One hash for each run of n words, uint64 [N - n + 1], empty for a shorter text."""
        if n not in self._known:
            head = 1 << (n - 1).bit_length() - 1  # 13 is 8 and 5, 5 is 4 and 1: the parts are shared
            left, right = self[head], self[n - head]
            count = max(0, len(self._known[1]) - n + 1)
            self._known[n] = mix(left[:count] * _ORDER + right[head : head + count], rounds=1)
        return self._known[n]


class Words:
    """The words of a text: a hash, the place in the normalised bytes and the length in bytes of each."""

    def __init__(self, text: str) -> None:
        data = normalise(text)
        spans = [_spans(data, start, end) for start, end in _pieces(data)]
        self.start_N = np.concatenate([start for start, _ in spans])
        self.length_N = np.concatenate([end for _, end in spans]) - self.start_N
        self.hash_N = np.concatenate([_hash(data, start, end - start) for start, end in spans])
        self.ngrams = Ngrams(self.hash_N)
        self.data = data

    def __len__(self) -> int:
        return len(self.hash_N)

    def count(self, of: bytes) -> int:
        """How many bytes of the normalised text are among `of`."""
        return len(self.data) - len(self.data.translate(None, of))


def _pieces(data: bytes) -> Iterator[tuple[int, int]]:
    """Ranges of about PIECE_BYTES that begin and end with a space."""
    start, last = 0, len(data) - 8
    while start < last:
        end = data.index(b" ", min(start + PIECE_BYTES, last))
        yield start, end + 1
        start = end


def _spans(data: bytes, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of a range begin and end."""
    code = np.frombuffer(data, dtype=np.uint8)[start:end]
    inside = code != SPACE
    if not data.isascii():
        alone = (code >= FIRST_OF_KANA) & (code <= LAST_OF_HAN)
        if alone.any():
            cut = alone.copy()
            cut[3:] |= alone[:-3]
            begins = inside[1:] & (~inside[:-1] | cut[1:])
            ends = inside[:-1] & (~inside[1:] | cut[1:])
            return np.flatnonzero(begins) + (start + 1), np.flatnonzero(ends) + (start + 1)
    edge = np.flatnonzero(inside[1:] != inside[:-1]) + (start + 1)
    return edge[::2], edge[1::2]


def _hash(data: bytes, start_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """Hash of each word: eight bytes at a time, in the order of the bytes, up to WORD_BYTES of them."""
    eight = np.ndarray(len(data) - 7, dtype="<u8", buffer=data, strides=(1,))  # the eight bytes from each place on
    hash_N = mix((eight[start_N] & _FIRST_BYTES[np.minimum(length_N, 8)]) ^ (length_N.astype(np.uint64) * _ORDER))
    for at in range(8, WORD_BYTES, 8):
        longer = np.flatnonzero(length_N > at)
        if not len(longer):
            break
        more = eight[start_N[longer] + at] & _FIRST_BYTES[np.minimum(length_N[longer] - at, 8)]
        hash_N[longer] = mix((hash_N[longer] ^ more) * _ORDER)
    return hash_N


def mix(x: np.ndarray, rounds: int = 2) -> np.ndarray:
    """A bijection of 64-bit integers that lets low bits reach high ones and back (multiply and shift)."""
    for _ in range(rounds):
        x = x ^ (x >> _SHIFT)
        x *= _MULTIPLIER
    x ^= x >> _SHIFT
    return x
