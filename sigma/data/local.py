"""The user's own texts: a folder of txt, md, jsonl (also .gz and .zst) and parquet files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sigma.core.errors import ConfigError
from sigma.data.json_lines import JsonLines
from sigma.data.limits import RecordLimits
from sigma.data.parquet import ParquetTexts
from sigma.data.record import Block, DataError, FileRef, Unavailable
from sigma.data.text_files import read_text

TEXT_SUFFIXES = (".txt", ".md")
LINE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SUFFIXES = (*TEXT_SUFFIXES, *LINE_SUFFIXES, ".parquet")
OWN_NOTE = "README.txt"  # the program puts it into an empty folder
ENDS = 64 << 10  # bytes at the beginning and the end of a file that its pin covers


class LocalFiles:
    """A collection of the files below a folder. It is pinned by names, sizes and the ends of the contents, so that a
    copy of the folder is the same. Raises ConfigError when there is nothing to read.
    """

    name = "files"

    def __init__(self, folder: Path, limits: RecordLimits = RecordLimits()) -> None:  # noqa: B008 - frozen
        self._folder, self._limits = folder, limits
        self._pin: str | None = None
        self._files: list[FileRef] | None = None
        self._open: tuple[int, JsonLines | _LocalParquet] | None = None
        if not self._found():
            raise ConfigError(
                f"{folder} holds no text: put files that end in {', '.join(SUFFIXES)} there (rows of jsonl and parquet "
                "need a field `text`), or name another folder with --data-dir."
            )

    @property
    def fingerprint(self) -> str:
        return self.name

    @property
    def pin(self) -> str | None:
        return self._pin

    def pin_to(self, pin: str) -> None:
        self._pin, self._files = pin, None

    def files(self) -> Sequence[FileRef]:
        if self._files is None:
            found = self._found()
            try:
                pin = hashlib.sha256("\n".join(self._signature(file) for file in found).encode()).hexdigest()[:16]
            except OSError as error:
                raise Unavailable(self.name, f"cannot read ({error})") from error
            if self._pin not in (None, pin):
                raise DataError(
                    f"the files in {self._folder} are not those that the run was started with. Put them back, or "
                    "start a new run in another --output-dir."
                )
            self._pin, self._files = pin, found
        return self._files

    def read(self, file: int, position: int) -> Block:
        name = self.files()[file].path
        path = self._folder / name
        try:
            if name.lower().endswith(TEXT_SUFFIXES):
                return read_text(path, name, self.name, position, self._limits)
            return self._reader(file, path, name).read(position)
        except OSError as error:
            self.close()
            raise Unavailable(self.name, f"{name}: cannot read ({error})") from error

    def close(self) -> None:
        self._open = None  # not closed here: another thread may be reading it

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def _reader(self, file: int, path: Path, name: str) -> JsonLines | _LocalParquet:
        """The reader of a file; that of the last one stays open."""
        if self._open is None or self._open[0] != file:
            kind = _LocalParquet if name.lower().endswith(".parquet") else JsonLines
            self._open = (file, kind(path, name, self.name, self._limits))
        return self._open[1]

    def _found(self) -> list[FileRef]:
        """All files that can be read, by name; hidden ones and hidden folders are left alone."""
        found: list[FileRef] = []
        for folder, inner, names in os.walk(self._folder):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in names:
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    path = Path(folder, name)
                    found.append(FileRef(path.relative_to(self._folder).as_posix(), path.stat().st_size))
        return sorted((file for file in found if file.path != OWN_NOTE), key=lambda file: file.path)

    def _signature(self, file: FileRef) -> str:
        """Name, size and a hash of the ends of a file."""
        assert file.size is not None
        with (self._folder / file.path).open("rb") as opened:
            ends = opened.read(ENDS)
            opened.seek(max(len(ends), file.size - ENDS))
            ends += opened.read(ENDS)
        return f"{file.path} {file.size} {hashlib.sha256(ends).hexdigest()}"


class _LocalParquet:
    """A parquet file on the disk."""

    def __init__(self, path: Path, name: str, source: str, limits: RecordLimits) -> None:
        self._source, self._name = source, name
        self._file = path.open("rb")
        size = os.fstat(self._file.fileno()).st_size
        self._texts = ParquetTexts(self._read_at, size, source, name, limits=limits, keep_chunks=False)

    def _read_at(self, start: int, end: int) -> bytes:
        try:
            self._file.seek(start)
            return self._file.read(end - start)
        except OSError as error:  # a disk that fails is no damage of the file
            raise Unavailable(self._source, f"{self._name}: cannot read ({error})") from error

    def read(self, position: int) -> Block:
        return self._texts.read(position)
