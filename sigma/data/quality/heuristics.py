"""The gate for web text: rules of Gopher (Rae et al., 2021, appendix A.1.1), C4 (Raffel et al., 2020, section 2.2)
and FineWeb (Penedo et al., 2024, section 3.6), at their published thresholds unless a rule says otherwise.

A rule is a function of a page, and its name is the reason that is reported. Words are normalised ones (`words.py`).
C4's rule against curly brackets is left out: it drops every text about programming.
"""

# ruff: noqa: RUF001 - signs of several scripts

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from sigma.data.quality.words import FIRST_OF_KANA, Words

SENTENCE_ENDS = (".", "!", "?", '"', "'", "”", "’", "»", "。", "！", "？", "」", "…")
ELLIPSES = ("...", "…")
BULLETS = ("•", "●", "○", "■", "□", "▪", "▶", "‣", "◦", "-", "*", "–")
SHORT_LINE = 30
TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
NOTICES = (b"javascript", b"cookie", b"terms of use", b"privacy policy", b"terms of service", b"all rights reserved")
STOP_WORDS = (b" the ", b" be ", b" to ", b" of ", b" and ", b" that ", b" have ", b" with ")
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character
NINE = ord("9")


class Page:
    """A text and what several rules need of it."""

    def __init__(self, text: str, words: Words, language: str | None) -> None:
        self.text, self.words, self.language = text, words, language
        self.byte = np.frombuffer(words.data, dtype=np.uint8)
        self.word_bytes = int(words.length_N.sum())

    @cached_property
    def lines(self) -> list[str]:
        """The lines that hold something, without the spaces around it."""
        return [line for line in map(str.strip, self.text.splitlines()) if line]

    @cached_property
    def spaced(self) -> bool:
        """Whether spaces separate the words: not so in Chinese and Japanese, for most of the characters."""
        if self.text.isascii():
            return True
        return bool(np.count_nonzero(self.byte[self.words.start_N] >= FIRST_OF_KANA) < len(self.words) / 2)

    @cached_property
    def _end_N(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.words.length_N)])

    def run_bytes(self, n: int) -> np.ndarray:
        """Bytes of each run of n words, without what separates them, int64 [N - n + 1]."""
        return self._end_N[n:] - self._end_N[:-n]

    def share_of_lines(self, holds: Callable[[str], bool]) -> float:
        """Share of the lines that a condition holds for; 0 without lines."""
        return sum(map(holds, self.lines)) / max(1, len(self.lines))


# ------------------------------------------------------------------ rules: True is a reason to drop
def too_short(page: Page) -> bool:
    """Under 50 words (Gopher)."""
    return len(page.words) < 50


def too_long(page: Page) -> bool:
    """Over 100,000 words (Gopher)."""
    return len(page.words) > 100_000


def word_length(page: Page) -> bool:
    """Words of under 3 or over 10 characters in the mean (Gopher)."""
    characters = page.word_bytes - (0 if page.text.isascii() else page.words.count(CONTINUATION))
    return page.spaced and not 3 * len(page.words) <= characters <= 10 * len(page.words)


def symbols(page: Page) -> bool:
    """More than one `#`, or more than one ellipsis, for ten words (Gopher)."""
    most = 0.1 * len(page.words)
    return page.text.count("#") > most or sum(map(page.text.count, ELLIPSES)) > most


def few_letters(page: Page) -> bool:
    """Over 20 % of the words without a letter (Gopher; here words that begin and end with a digit), or under 20 % of
    all characters letters (the gate of the predecessor).
    """
    digits = page.words.count(b"0123456789")
    if page.word_bytes - digits < 0.2 * len(page.text):
        return True
    most = 0.2 * len(page.words)
    if digits <= most:  # each of those words has one
        return False
    first, last = (page.byte[at] <= NINE for at in (page.words.start_N, page.words.start_N + page.words.length_N - 1))
    return bool(np.count_nonzero(first & last) > most)


def no_stop_words(page: Page) -> bool:
    """English with fewer than two of the words the, be, to, of, and, that, have, with (Gopher)."""
    if page.language != "en":
        return False
    return sum(word in page.words.data for word in STOP_WORDS) < 2


def boilerplate(page: Page) -> bool:
    """Placeholder text, or a notice about scripts, cookies and terms for every 50 words (the phrases are C4's, which
    removes lines; the share is ours).
    """
    data = page.words.data
    return b"lorem ipsum" in data or sum(map(data.count, NOTICES)) > len(page.words) / 50


def bullet_list(page: Page) -> bool:
    """Over 90 % of the lines begin with a bullet (Gopher)."""
    return page.share_of_lines(lambda line: line.startswith(BULLETS)) > 0.9


def cut_lines(page: Page) -> bool:
    """Over 30 % of the lines end with an ellipsis (Gopher)."""
    return page.share_of_lines(lambda line: line.endswith(ELLIPSES)) > 0.3


def few_sentences(page: Page) -> bool:
    """At most 12 % of the lines end like a sentence (FineWeb)."""
    return page.share_of_lines(lambda line: line.endswith(SENTENCE_ENDS)) <= 0.12


def short_lines(page: Page) -> bool:
    """At least 67 % of the lines have under 30 characters (FineWeb), or more than three words in ten a line break."""
    if not page.spaced:
        return False
    short = page.share_of_lines(lambda line: len(line) < SHORT_LINE)
    return short >= 0.67 or len(page.lines) > 0.3 * len(page.words)


def repeated_lines(page: Page) -> bool:
    """Over 30 % of the lines repeat an earlier one (Gopher), or at least 10 % of their characters (FineWeb)."""
    distinct = set(page.lines)
    repeats = len(page.lines) - len(distinct)
    if not repeats:
        return False
    characters = sum(map(len, page.lines))
    return repeats > 0.3 * len(page.lines) or characters - sum(map(len, distinct)) >= 0.1 * characters


def repeated_phrase(page: Page) -> bool:
    """The most frequent run of 2, 3 or 4 words takes over 20, 18 or 16 % of the text (Gopher)."""
    most_frequent = _run_lengths(np.sort(page.words.ngrams[2])).max()
    # no run of 3 or 4 is more frequent than that, and none is longer than the longest run of 4
    if most_frequent * page.run_bytes(4).max() <= min(TOP_NGRAM.values()) * page.word_bytes:
        return False
    for n, most in TOP_NGRAM.items():
        if _run_lengths(np.sort(page.words.ngrams[n])).max() * page.run_bytes(n).max() <= most * page.word_bytes:
            continue  # the most frequent run is not even as long as the longest: to find out which it is costs more
        _, first, count = np.unique(page.words.ngrams[n], return_index=True, return_counts=True)
        top = count.argmax()
        if count[top] > 1 and count[top] * page.run_bytes(n)[first[top]] > most * page.word_bytes:
            return True
    return False


def repeated_text(page: Page) -> bool:
    """Runs of 5, 6, ... 10 words that were there before take over 15, 14, ... 10 % of the text (Gopher)."""
    least = min(REPEATED_NGRAMS.values())
    repeats = len(page.words.ngrams[5]) - len(_run_lengths(np.sort(page.words.ngrams[5])))
    if repeats * page.run_bytes(5).max() <= least * page.word_bytes:
        return False
    for n, most in REPEATED_NGRAMS.items():
        share = _repeated_share(page, n)
        if share > most:
            return True
        if share <= least:  # what longer runs repeat, shorter ones repeat too
            return False
    return False


def _run_lengths(ordered: np.ndarray) -> np.ndarray:
    """How often each value of a sorted array occurs."""
    return np.diff(np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])))


def _repeated_share(page: Page, n: int) -> float:
    """Share of the words' bytes that lie in a run of n words which occurred earlier."""
    hashes = page.words.ngrams[n]
    again = np.ones(len(hashes), dtype=bool)
    again[np.unique(hashes, return_index=True)[1]] = False
    change = np.zeros(len(page.words) + 1, dtype=np.int64)
    change[: len(hashes)] += again
    change[n : n + len(hashes)] -= again
    return float(page.words.length_N[np.cumsum(change[:-1]) > 0].sum()) / page.word_bytes


RULES: tuple[Callable[[Page], bool], ...] = (
    too_short, too_long, symbols, few_letters, word_length, no_stop_words, boilerplate,
    bullet_list, cut_lines, few_sentences, short_lines, repeated_lines, repeated_phrase, repeated_text,
)  # fmt: skip
"""In the order in which they are asked: the last two rely on the 50 words that `too_short` asks for."""


def broken_rule(page: Page) -> str | None:
    """Name of the first rule that gives a reason to drop the page."""
    return next((rule.__name__ for rule in RULES if rule(page)), None)
