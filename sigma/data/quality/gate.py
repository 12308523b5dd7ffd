"""Whether a record is trained on: one decision about one record, whatever came before it.

Every record must be Unicode and must not share 13 words in a row with a held-out text. Pages of the web must also be
in a wanted language and pass the rules of `heuristics.py`; other sources did that themselves, or are the user's own
choice.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from sigma.config.data import DataSection
from sigma.config.table import nearest
from sigma.core.errors import ConfigError
from sigma.core.files import sha256_file
from sigma.data.corpus import load_corpus
from sigma.data.quality import contamination, heuristics
from sigma.data.quality.contamination import Contamination, hashes_of, open_hashes
from sigma.data.quality.duplicates import Duplicates, signature
from sigma.data.quality.language import known_languages, language_of
from sigma.data.quality.words import Words
from sigma.data.record import Record

WEB_SOURCES = frozenset({"commoncrawl"})
LEAST_CHARACTERS = 64  # the gate of the predecessor; so little text does not tell its language either
ANY_LANGUAGE = "any"
REASONS = ("no_unicode", "language", *(rule.__name__ for rule in heuristics.RULES), "contamination")


@dataclass(frozen=True)
class Verdict:
    """Why a record is dropped (None: it is kept), and what near-duplicates of a kept one are recognised by (None: it
    is too short for that).
    """

    reason: str | None
    signature: np.ndarray | None = None


class Gate:
    """Keeps or drops single records. The same record gets the same verdict, in any thread."""

    def __init__(
        self,
        *,
        held_out: Callable[[], Contamination],
        web: Collection[str] = WEB_SOURCES,
        languages: Collection[str] = (),
        signature_bytes: int = 4096,
        identity: str = "",
    ) -> None:
        """`held_out` is called once, when the first record comes. `web`: names of the sources whose records are pages
        of the web; `languages`: the codes to keep of those, all if empty. `identity` names the held-out texts.
        """
        self._web, self._languages = frozenset(web), frozenset(languages)
        self._make_guard, self._guard, self._lock = held_out, None, threading.Lock()
        self._signature_bytes = signature_bytes
        parts = (contamination.VERSION, sorted(self._web), sorted(self._languages), signature_bytes, identity)
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        """What the verdicts depend on besides the program."""

    def check(self, record: Record) -> str | None:
        """None keeps the record; otherwise the name of the reason to drop it, one of REASONS."""
        return self._examine(record)[0]

    def examine(self, record: Record) -> Verdict:
        """`check` and `signature` in one, for little more time than `check`."""
        reason, words = self._examine(record)
        if reason is not None or words is None:
            return Verdict(reason)
        return Verdict(None, signature(record.source, record.id, words, self._signature_bytes))

    def signature(self, record: Record) -> np.ndarray | None:
        """What `Duplicates` recognises a kept record by."""
        return signature(record.source, record.id, Words(record.text), self._signature_bytes)

    def _examine(self, record: Record) -> tuple[str | None, Words | None]:
        text, web, language = record.text, record.source in self._web, None
        if web and len(text) < LEAST_CHARACTERS:
            return "too_short", None
        try:
            if web and self._languages:
                language = language_of(text)
                if language not in self._languages:
                    return "language", None
            words = Words(text)
        except UnicodeEncodeError:
            return "no_unicode", None
        reason = heuristics.broken_rule(heuristics.Page(text, words, language)) if web else None
        if reason is None and self._held_out().hit(words):
            reason = "contamination"
        return reason, words

    def _held_out(self) -> Contamination:
        if self._guard is None:
            with self._lock:
                self._guard = self._guard or self._make_guard()
        return self._guard


def build_gate(data: DataSection) -> Gate:
    """The gate of a data section: guards the bundled held-out texts and those of `--contamination-file`.

    Raises ConfigError for a language that is not known, DataError for a file that holds no hashes.
    """
    path = data.contamination_file
    more = [open_hashes(path)] if isinstance(path, Path) else []
    return Gate(
        held_out=lambda: Contamination([bundled_hashes(), *more]),
        languages=wanted_languages(data.languages),
        signature_bytes=data.dedup_normalize_chars,
        identity=load_corpus().fingerprint + (sha256_file(path) if isinstance(path, Path) else ""),
    )


@cache
def bundled_hashes() -> np.ndarray:
    """The hashes of the bundled held-out texts, natural and code."""
    corpus = load_corpus()
    kinds = ("natural", "code")
    return hashes_of(record.text for kind in kinds for record in corpus.records(kind, validation=True))


def wanted_languages(value: str) -> frozenset[str]:
    """The codes in the value of `--languages`; empty for `any`. Raises ConfigError for an unknown one."""
    if value == ANY_LANGUAGE:
        return frozenset()
    codes = frozenset(code.strip().lower() for code in value.split(","))
    for code in sorted(codes - known_languages()):
        close = nearest(code, known_languages())
        hint = f"did you mean {close}?" if close else "write codes like en,fr"
        raise ConfigError(f"--languages {value}: {code!r} is not a language code that is known here; {hint}")
    return codes


def build_duplicates(data: DataSection) -> Duplicates | None:
    """The near-duplicate search of a data section; None where it is switched off."""
    return Duplicates(data.dedup_window_size) if data.dedup_window_size else None
