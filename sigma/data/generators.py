"""Seeded, verified exercises: arithmetic, parity and key-value recall. Item i is a function of (key, i), nothing
else.

Training, validation and hidden items are disjoint by construction, twice: their keys differ, and the prompt's own
hash decides which side it may appear on (an item of the wrong side is drawn again), so that small families do not
overlap by chance. `verify` reads the answer's prompt again and recomputes it by a second method.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sigma.data.record import Cursor, DataError, Record

Split = Literal["train", "validation", "hidden"]
BUCKETS: dict[Split, range] = {"train": range(80), "validation": range(80, 90), "hidden": range(90, 100)}
ITEMS_PER_RECORD = 16
ATTEMPTS = 1000
PARITY_VOCABULARY = 5  # pad, bos, eos, "0", "1"


@dataclass(frozen=True)
class Item:
    """An exercise; its text is prompt + answer."""

    prompt: str
    answer: str


class Draws:
    """Random numbers as a function of (key, index): raw words of Philox, whose values numpy promises to keep."""

    def __init__(self, key: str, index: int) -> None:
        digest = hashlib.sha256(f"{key} {index}".encode()).digest()
        self._words = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def below(self, n: int) -> int:
        """A number in [0, n); the bias is under n / 2^64."""
        return int(self._words.random_raw()) % n

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)


# ------------------------------------------------------------------ the families
def arithmetic_item(draws: Draws, level: int) -> Item:
    """Sum, difference or product of two numbers of at most `level` digits (products: at most 3 by 3)."""
    sign = "+-*"[draws.below(3)]
    digits = min(level, 3) if sign == "*" else level
    left, right = (draws.below(10 ** draws.between(1, digits)) for _ in range(2))
    answer = {"+": left + right, "-": left - right, "*": left * right}[sign]
    return Item(f"{left} {sign} {right} = ", str(answer))


def verify_arithmetic(item: Item) -> bool:
    """Schoolbook arithmetic on lists of decimal digits, from the prompt alone."""
    left, sign, right = re.fullmatch(r"(\d+) ([-+*]) (\d+) = ", item.prompt).groups()  # type: ignore[union-attr]
    a, b = ([int(digit) for digit in reversed(number)] for number in (left, right))
    if sign == "*":
        columns = [0] * (len(a) + len(b))
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                columns[i + j] += x * y
    else:
        width = max(len(a), len(b)) + 1
        a, b = a + [0] * (width - len(a)), b + [0] * (width - len(b))
        columns = [x + y if sign == "+" else x - y for x, y in zip(a, b, strict=True)]
    negative = _carry(columns) < 0
    if negative:
        columns = [y - x for x, y in zip(a, b, strict=True)]
        _carry(columns)
    digits = "".join(map(str, reversed(columns))).lstrip("0") or "0"
    return item.answer == ("-" if negative else "") + digits


def _carry(columns: list[int]) -> int:
    """Bring every column into 0..9 in place; what leaves the last column is returned (-1: the number is negative)."""
    carry = 0
    for i, column in enumerate(columns):
        carry, columns[i] = divmod(column + carry, 10)
    return carry


def parity_item(draws: Draws, level: int) -> Item:
    """Whether a string of 8 * level to 16 * level bits holds an odd number of ones."""
    bits = [draws.below(2) for _ in range(draws.between(8 * level, 16 * level))]
    odd = 0
    for bit in bits:
        odd ^= bit
    return Item(f"parity {''.join(map(str, bits))} = ", "odd" if odd else "even")


def verify_parity(item: Item) -> bool:
    """Counts the ones instead of folding them."""
    return item.answer == ("even", "odd")[item.prompt.split()[1].count("1") % 2]


def recall_item(draws: Draws, level: int) -> Item:
    """2 * level to 4 * level pairs of a letter and a number, then the letter whose number is asked."""
    letters = [chr(ord("a") + i) for i in range(26)]
    for last in range(25, 0, -1):
        other = draws.below(last + 1)
        letters[last], letters[other] = letters[other], letters[last]
    pairs = {letter: draws.between(10, 99) for letter in letters[: min(26, draws.between(2 * level, 4 * level))]}
    asked = list(pairs)[draws.below(len(pairs))]
    return Item(", ".join(f"{key}: {value}" for key, value in pairs.items()) + f"; {asked}? ", str(pairs[asked]))


def verify_recall(item: Item) -> bool:
    """Searches the text of the prompt for the asked key."""
    facts, asked = item.prompt.removesuffix("? ").split("; ")
    return re.findall(rf"\b{asked}: (\d+)", facts) == [item.answer]


@dataclass(frozen=True)
class Family:
    """How the items of one kind are made and checked, and the levels that training draws from."""

    make: Callable[[Draws, int], Item]
    verify: Callable[[Item], bool]
    levels: range


FAMILIES: dict[str, Family] = {
    "arithmetic": Family(arithmetic_item, verify_arithmetic, range(2, 6)),
    "parity": Family(parity_item, verify_parity, range(1, 5)),
    "recall": Family(recall_item, verify_recall, range(1, 6)),
}


def verify(family: str, item: Item) -> bool:
    """True when a second implementation gets the same answer from the prompt."""
    return FAMILIES[family].verify(item)


def side_of(prompt: str) -> Split:
    """The only split in which this prompt may appear."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "little") % 100
    return next(split for split, buckets in BUCKETS.items() if bucket in buckets)


def item(family: str, seed: int, index: int, *, split: Split = "train", level: int | None = None) -> Item:
    """Item `index` of a family. `level` is its difficulty; by default drawn from the family's levels.

    Raises DataError when the split has no item of that level, which happens only below the family's lowest level.
    """
    chosen = FAMILIES[family]
    for attempt in range(ATTEMPTS):
        draws = Draws(f"{family} {split} {seed} {attempt}", index)
        candidate = chosen.make(draws, chosen.levels[draws.below(len(chosen.levels))] if level is None else level)
        if side_of(candidate.prompt) == split:
            return candidate
    raise DataError(f"{family}: no {split} item of level {level} in {ATTEMPTS} draws; ask for a higher level.")


class GeneratorSource:
    """Records of 16 items of one family, a line each, forever; the cursor is one integer."""

    def __init__(self, family: str, seed: int, split: Split = "train") -> None:
        self.name = family
        self._seed = seed
        self._split: Split = split
        self._index = 0

    def items(self, index: int) -> list[Item]:
        """The items of record `index`, with their answers."""
        first = index * ITEMS_PER_RECORD
        return [item(self.name, self._seed, i, split=self._split) for i in range(first, first + ITEMS_PER_RECORD)]

    def __next__(self) -> Record:
        text = "".join(f"{row.prompt}{row.answer}\n" for row in self.items(self._index))
        self._index += 1
        return Record(self.name, str(self._index - 1), text)

    def cursor(self) -> Cursor:
        return {"index": self._index}

    def seek(self, cursor: Cursor) -> None:
        self._index = cursor["index"]


def parity_batch(length: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`n` random bit strings for a state-tracking test: (ids, labels), int64 [n, length].

    The bit b has the id 3 + b (vocabulary PARITY_VOCABULARY); the label at t is 3 + the parity of the bits 0..t.
    """
    generator = torch.Generator().manual_seed(seed)
    bits_NT = torch.randint(0, 2, (n, length), generator=generator)
    return bits_NT + 3, bits_NT.cumsum(1) % 2 + 3
