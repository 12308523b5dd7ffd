"""The bundled corpus: archives of public-domain and permissive texts, checked by sha256 when they are read.

An archive is xz over JSON lines `{"id": "Ps.23#0", "text": ...}`: a passage per line, the training passages first. A
document is what stands before the `#`; training and validation never share one. `provenance.json` says where every
text comes from.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sigma.data.record import Cursor, DataError, Record

FOLDER = Path(__file__).with_name("corpus")
Kind = Literal["natural", "code"]


def read_checked(path: Path, sha256: str) -> bytes:
    """The bytes of a corpus file. Raises DataError when it is missing or differs from its recorded hash."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read the bundled corpus ({error}). Install the program again.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: damaged, its sha256 is not the recorded one. Install the program again.")
    return content


class Corpus:
    """All archives in memory as bytes; a passage is parsed when it is asked for. Takes part in a pickle as its
    folder.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        try:
            self.provenance: dict[str, Any] = json.loads((folder / "provenance.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}/provenance.json: cannot read ({error}). Install the program again.") from error
        self._rows: list[dict[str, Any]] = self.provenance["archives"]
        with ThreadPoolExecutor(2) as pool:  # lzma and sha256 release the interpreter lock
            self._lines = dict(zip((row["name"] for row in self._rows), pool.map(self._read, self._rows), strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return load_corpus, (self.folder,)

    def _read(self, row: dict[str, Any]) -> list[bytes]:
        packed = read_checked(self.folder / row["file"], row["sha256"])
        lines = lzma.decompress(packed).rstrip(b"\n").split(b"\n")
        if len(lines) != row["passages"] + row["validation_passages"]:
            raise DataError(
                f"{self.folder / row['file']}: holds {len(lines)} passages, provenance.json says otherwise."
            )
        return lines

    @property
    def fingerprint(self) -> str:
        """Hash over the hashes of all archives, 16 hex digits."""
        return hashlib.sha256("".join(row["sha256"] for row in self._rows).encode()).hexdigest()[:16]

    def passages(self, kind: Kind, *, validation: bool) -> Sequence[tuple[str, bytes]]:
        """(source, line) of one side of the split, in a fixed order."""
        out: list[tuple[str, bytes]] = []
        for row in self._rows:
            if row["kind"] == kind:
                lines, cut = self._lines[row["name"]], row["passages"]
                out += [(row["name"], line) for line in (lines[cut:] if validation else lines[:cut])]
        return out

    def records(self, kind: Kind, *, validation: bool) -> Iterator[Record]:
        """The passages as records, in a fixed order."""
        return (parse(source, line) for source, line in self.passages(kind, validation=validation))

    def training_texts(self) -> Iterator[str]:
        """Every training passage, natural text first: what the tokenizer is trained from."""
        for kind in ("natural", "code"):
            yield from (record.text for record in self.records(kind, validation=False))


def parse(source: str, line: bytes) -> Record:
    """A line of an archive as a record."""
    fields = json.loads(line)
    return Record(source, fields["id"], fields["text"])


@cache
def load_corpus(folder: Path = FOLDER) -> Corpus:
    """The corpus of a folder, read once per process (about half a second)."""
    return Corpus(folder)


def keyed_order(n: int, key: str) -> np.ndarray:
    """An order of range(n) that is a function of (n, key) alone.

    Sorts the raw words of Philox (Salmon et al., SC 2011), whose values numpy promises to keep;
    `Generator.permutation` has no such promise, and a resumed run may meet a newer numpy.
    """
    words = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
    return np.argsort(words.random_raw(n), kind="stable")


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n bundled passages in one epoch."""
    return keyed_order(n, f"corpus {seed} {epoch}")


class CorpusSource:
    """The training passages of one kind, forever: each exactly once per epoch, in a new order every epoch."""

    def __init__(self, name: Kind, corpus: Corpus, seed: int) -> None:
        self.name = name
        self._passages = corpus.passages(name, validation=False)
        self._seed = seed
        self._epoch = self._index = 0
        self._order = permutation(len(self._passages), seed, 0)

    def __len__(self) -> int:
        return len(self._passages)

    def __next__(self) -> Record:
        record = parse(*self._passages[self._order[self._index]])
        self._index += 1
        if self._index == len(self._passages):
            self.seek({"epoch": self._epoch + 1, "index": 0})
        return record

    def cursor(self) -> Cursor:
        return {"epoch": self._epoch, "index": self._index}

    def seek(self, cursor: Cursor) -> None:
        if cursor["epoch"] != self._epoch:
            self._order = permutation(len(self._passages), self._seed, cursor["epoch"])
        self._epoch, self._index = cursor["epoch"], cursor["index"]
