"""A look at the texts of a backend before anything is trained: documents, what is dropped and why, speed.

It reads with the real sources and decides with the real gate. A source that cannot be reached says why, and then the
bundled texts are shown, as a run would use them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sigma.config.data import DataSection
from sigma.data.backends import natural_shares
from sigma.data.corpus import CorpusSource, load_corpus
from sigma.data.quality.contamination import Contamination
from sigma.data.quality.duplicates import Duplicates, signature
from sigma.data.quality.gate import build_duplicates, build_gate, bundled_hashes
from sigma.data.quality.heuristics import Page, broken_rule
from sigma.data.quality.language import language_of
from sigma.data.quality.words import Words
from sigma.data.record import DataError, Record, RemoteSource
from sigma.data.sources import text_source
from sigma.data.tally import DUPLICATE
from sigma.data.tokenizer import Tokenizer

MOST_RECORDS = 500
MOST_BYTES = 4 << 20
POLL_S = 0.05


@dataclass
class SourcePreview:
    """What a source gave. `failure` is why it gave nothing (more); `gated` is False for the bundled texts."""

    name: str
    share: float
    gated: bool = True
    failure: str | None = None
    records: list[Record] = field(default_factory=list)
    kept: list[Record] = field(default_factory=list)
    dropped: dict[str, list[Record]] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    read_s: float = 0.0
    tokens: int = 0

    @property
    def bytes(self) -> int:
        return sum(len(record.text.encode(errors="replace")) for record in self.records)


@dataclass(frozen=True)
class Stage:
    """What one step costs, alone, on one core."""

    name: str
    seconds: float
    bytes: int

    @property
    def mb_per_s(self) -> float:
        return self.bytes / max(self.seconds, 1e-9) / 1e6


def preview_sources(data: DataSection, seed: int, tokenizer: Tokenizer, seconds: float) -> Iterator[SourcePreview]:
    """Look at each source of the backend for at most `seconds`, and at the bundled texts where a run uses them."""
    gate, duplicates = build_gate(data), build_duplicates(data)
    shares = natural_shares(data).items()
    sources = [(text_source(name, data, seed), share) for name, share in shares if share > 0]
    try:
        for source, _ in sources:
            source.ready()  # all of them begin to read at once
        for source, share in sources:
            found = _read(source, share, seconds)
            for record in found.records:
                verdict = gate.examine(record)
                twice = verdict.reason is None and duplicates is not None and duplicates.seen(verdict.signature)
                reason = DUPLICATE if twice else verdict.reason
                (found.kept if reason is None else found.dropped.setdefault(reason, [])).append(record)
            found.tokens = _count(tokenizer, found.kept)
            yield found
    finally:
        for source, _ in sources:
            source.close()
    yield _bundled(data, seed, tokenizer, 0.0 if sources else 1.0)


def _read(source: RemoteSource, share: float, seconds: float) -> SourcePreview:
    """Records until there are enough or the time is over; a source that failed is not waited for any longer."""
    found = SourcePreview(source.name, share)
    began = time.perf_counter()
    size = 0
    while len(found.records) < MOST_RECORDS and size < MOST_BYTES:
        left_s = began + seconds - time.perf_counter()
        if not source.ready(min(POLL_S, max(0.0, left_s))):
            found.failure = source.failure
            if found.failure is not None or left_s <= 0:
                break
            continue
        try:
            found.records.append(next(source))
        except DataError as error:
            found.failure = str(error)
            break
        size += len(found.records[-1].text)
    found.read_s = time.perf_counter() - began
    if not found.records and found.failure is None:
        found.failure = f"no answer within {seconds:g} s"
    found.skipped = Counter(source.skipped)
    return found


def _bundled(data: DataSection, seed: int, tokenizer: Tokenizer, share: float) -> SourcePreview:
    began = time.perf_counter()
    source = CorpusSource("natural", load_corpus(), seed)
    found = SourcePreview("bundled", share, gated=False)
    found.records = found.kept = [next(source) for _ in range(MOST_RECORDS)]
    found.read_s = time.perf_counter() - began
    found.tokens = _count(tokenizer, found.kept)
    return found


def _count(tokenizer: Tokenizer, records: list[Record]) -> int:
    return sum(map(len, tokenizer.encode_batch([record.text for record in records])))


def measure_stages(data: DataSection, tokenizer: Tokenizer, records: list[Record]) -> list[Stage]:
    """What each step of the way to tokens costs on these records, one after the other in this thread."""
    texts = [record.text for record in records if not _is_broken(record.text)]
    size = sum(len(text.encode()) for text in texts)
    guard, duplicates = Contamination([bundled_hashes()]), Duplicates(max(1, data.dedup_window_size))
    language_of("the first call reads the model")
    words, signatures = [], []

    def sign(number: int) -> None:
        signatures.append(signature("preview", str(number), words[number], data.dedup_normalize_chars))

    steps: dict[str, Callable[[int], object]] = {
        "language": lambda number: language_of(texts[number]),
        "words": lambda number: words.append(Words(texts[number])),
        "rules": lambda number: broken_rule(Page(texts[number], words[number], "en")),
        "held-out texts": lambda number: guard.hit(words[number]),
        "signature": sign,
        "near-duplicates": lambda number: duplicates.seen(signatures[number]),
        "tokens": lambda number: tokenizer.encode(texts[number]),
    }
    stages = []
    for name, step in steps.items():
        began = time.thread_time()
        for number in range(len(texts)):
            step(number)
        stages.append(Stage(name, time.thread_time() - began, size))
    return stages


def _is_broken(text: str) -> bool:
    """Whether a text has lone surrogates, which no stage can work on."""
    return text != text.encode(errors="replace").decode()
