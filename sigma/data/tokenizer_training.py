"""A tokenizer of one's own: a bounded sample of a backend's texts, and byte-level BPE on it.

The sample is a function of the backend, its files, the seed and its size, and the tokenizer one of the sample: equal
inputs give equal files. The manifest beside the file says what went in.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sigma.config.data import DataSection
from sigma.core.files import write_atomic
from sigma.core.strict_json import dumps
from sigma.core.version import VERSION
from sigma.data.backends import natural_shares
from sigma.data.corpus import CorpusSource, load_corpus
from sigma.data.mix import ShareMixer
from sigma.data.quality.gate import build_duplicates, build_gate
from sigma.data.record import DataError, Record, Source, Unavailable
from sigma.data.sources import text_source
from sigma.data.tally import DUPLICATE
from sigma.data.tokenizer import load_content, train_bpe

FILE_NAME, MANIFEST_NAME = "tokenizer.json", "tokenizer_manifest.json"


@dataclass
class Sample:
    """Texts of a backend up to `most_bytes` of UTF-8; iterating counts what went in and what was dropped."""

    data: DataSection
    seed: int
    most_bytes: int
    patience_s: float = 30.0
    """How long a source may give nothing before that is an error."""
    bytes_of: Counter[str] = field(default_factory=Counter)
    records_of: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Over all texts so far, each with its length."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """Each text once. Raises DataError when a source gives nothing for `patience_s`."""
        for record in self._mixed():
            text = record.text.encode()
            self.bytes_of[record.source] += len(text)
            self.records_of[record.source] += 1
            self._hash.update(len(text).to_bytes(8, "little") + text)
            yield record.text
            if self.bytes_of.total() >= self.most_bytes:
                return

    def _members(self) -> list[tuple[Source, float]]:
        """The sources of a run with these flags and their shares, without the generators."""
        data, corpus = self.data, load_corpus()
        rest = 1 - data.code_ratio - data.synthetic_ratio
        streamed = natural_shares(data)
        members: list[tuple[Source, float]] = [(CorpusSource("code", corpus, self.seed), data.code_ratio)]
        members += [(text_source(name, data, self.seed), share * rest) for name, share in streamed.items()]
        members += [] if streamed else [(CorpusSource("natural", corpus, self.seed), rest)]
        return [(source, share) for source, share in members if share > 0]

    def _mixed(self) -> Iterator[Record]:
        """Records from the sources by their shares of text, each record once; of streamed ones what the gate keeps."""
        members = self._members()
        opened, mixer = [source for source, _ in members], ShareMixer([part for _, part in members])
        self._gate, self._duplicates = build_gate(self.data), build_duplicates(self.data)
        seen: set[tuple[str, str]] = set()
        try:
            while members:
                turn = mixer.choose()
                source = members[turn][0]
                record = self._next(source)
                if (record.source, record.id) in seen:  # the source begins again
                    del members[turn]
                    mixer = ShareMixer([part for _, part in members]) if members else mixer
                    continue
                seen.add((record.source, record.id))
                if _is_streamed(source) and (reason := self._reason(record)):
                    self.dropped[reason] += 1
                    continue
                mixer.add(turn, len(record.text))
                yield record
        finally:
            for source in filter(_is_streamed, opened):
                source.close()  # pyright: ignore[reportAttributeAccessIssue]

    def _reason(self, record: Record) -> str | None:
        verdict = self._gate.examine(record)
        twice = verdict.reason is None and self._duplicates is not None and self._duplicates.seen(verdict.signature)
        return DUPLICATE if twice else verdict.reason

    def _next(self, source: Any) -> Record:
        if not _is_streamed(source):
            return next(source)
        deadline = time.monotonic() + self.patience_s
        while source.ready(max(0.0, deadline - time.monotonic())):
            try:
                return next(source)
            except Unavailable:
                continue
        raise DataError(f"{source.name} cannot be read: {source.failure or 'no answer'}. Nothing was written.")


def _is_streamed(source: Source) -> bool:
    return hasattr(source, "ready")


def train_tokenizer(sample: Sample, vocabulary: int, folder: Path) -> dict[str, Any]:
    """Train on a sample and write `tokenizer.json` and its manifest into `folder`; returns the manifest.

    `vocabulary` counts all ids; a small sample gives fewer. Raises DataError when the sample is empty or its source
    cannot be read, OSError when the folder cannot be written.
    """
    content = train_bpe(sample, vocabulary)
    if not sample.records_of:
        raise DataError("there is no text to train a tokenizer from: every record was dropped. Nothing was written.")
    folder.mkdir(parents=True, exist_ok=True)
    made = load_content(content)
    manifest = {
        "tokenizer": {"file": FILE_NAME, "sha256": write_atomic(folder / FILE_NAME, content.encode())},
        "vocabulary": made.vocab_size,
        "sample": {
            "backend": sample.data.data_backend,
            "seed": sample.seed,
            "most_bytes": sample.most_bytes,
            "bytes": dict(sorted(sample.bytes_of.items())),
            "records": dict(sorted(sample.records_of.items())),
            "dropped": dict(sorted(sample.dropped.items())),
            "sha256": sample.sha256,
        },
        "versions": {"sigma": VERSION, "tokenizers": importlib.metadata.version("tokenizers")},
    }
    write_atomic(folder / MANIFEST_NAME, (dumps(manifest, indent=2) + "\n").encode())
    return manifest
