"""Local JSON-lines files, plain or packed with gzip or Zstandard. A position is an offset in the unpacked bytes."""

from __future__ import annotations

import io
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sigma.data.limits import RecordLimits, decoded
from sigma.data.record import Block, Damaged, Record
from sigma.data.text_files import BOM, skip

BLOCK_LINES = 1000
BLOCK_BYTES = 4 << 20
PIECE = 1 << 20
CHUNK = 64 << 10  # unpacked at once
MOST_WINDOW = 128 << 20  # bytes that a Zstandard frame may look back; `zstd --long=27` makes them
PLAIN_JSON = 1 << 20  # bytes of a line whose brackets need not be counted
MOST_BRACKETS = 200_000  # in a longer one; each becomes an object of 60 to 200 bytes
UNREADABLE = (EOFError, zlib.error)


class _SlowError(Exception):
    """A line took longer than it may; it ends at `args[0]`."""


class JsonLines:
    """One open file of objects with a `text`, one per line."""

    def __init__(self, path: Path, name: str, source: str, limits: RecordLimits) -> None:
        self._path, self._name, self._source, self._limits = path, name, source, limits
        self._file: IO[bytes] | None = None  # as it lies on the disk
        self._unpacked: Any = None
        self._at = self._line = 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._unpacked = None

    def read(self, position: int) -> Block:
        """Some lines from `position` on. Raises Damaged where the file cannot be unpacked, and OSError."""
        block = Block([], None)
        try:
            if self._file is None or self._at != position:
                self._seek(position)
            for _ in range(BLOCK_LINES):
                if not self._add_line(block):
                    self.close()
                    return block
                if self._at >= position + BLOCK_BYTES:
                    break
        except (_SlowError, *UNREADABLE) as error:
            at = self._at
            self.close()
            if at == position and isinstance(error, _SlowError):
                reason = f"a line that takes more than {self._limits.seconds:g} s"
                raise Damaged(self._name, position, reason, error.args[0]) from error
            if at == position:
                raise Damaged(self._name, position, f"cannot be unpacked: {error}") from error
            block.next = at
            return block
        block.next = self._at
        return block

    def _seek(self, position: int) -> None:
        """Open the file and read up to `position`: what is packed has no other way, and the lines must be counted."""
        self.close()
        self._file = self._path.open("rb")
        self._at = self._line = 0
        suffix = self._path.suffix.lower()
        if suffix == ".gz":
            self._unpacked = io.BufferedReader(_Unpacked(_gzip_chunks(self._file)))
        elif suffix == ".zst":
            self._unpacked = io.BufferedReader(_Unpacked(_zstandard_chunks(self._file)))
        else:
            self._unpacked = self._file
        while self._at < position and (piece := self._unpacked.read(min(PIECE, position - self._at))):
            self._at += len(piece)
            self._line += piece.count(b"\n")
            self._check_ratio(self._at)

    def _add_line(self, block: Block) -> bool:
        """Add the next line to the block, or count why not; False at the end of the file."""
        start, limit = time.thread_time(), self._limits.record_bytes
        line = self._unpacked.readline(limit + 1)
        size = len(line)
        while len(line) > limit and not line.endswith(b"\n"):
            rest = self._unpacked.readline(PIECE)
            size += len(rest)
            self._check_ratio(self._at + size)
            if not rest or rest.endswith(b"\n"):
                break
        self._check_ratio(self._at + size)
        if self._at == 0:
            line = line.removeprefix(BOM)
        text, reason = (None, "too large") if size > limit + 1 else _text_of(line, self._limits)
        if time.thread_time() - start > self._limits.seconds:
            raise _SlowError(self._at + size)
        if text is not None:
            block.records.append(Record(self._source, f"{self._name}:{self._at}", text))
        elif line.strip():
            skip(block, reason, f"{self._name}, line {self._line + 1}")
        self._at += size
        self._line += 1
        return size > 0

    def _check_ratio(self, out: int) -> None:
        if self._unpacked is self._file or out <= self._limits.ratio_from:
            return
        assert self._file is not None
        if out > self._limits.ratio * self._file.tell():
            raise EOFError("compression ratio")


def _text_of(line: bytes, limits: RecordLimits) -> tuple[str | None, str]:
    """The text of a line, or None and why there is none."""
    if len(line) > PLAIN_JSON and line.count(b"[") + line.count(b"{") > MOST_BRACKETS:
        return None, "too large"
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except (ValueError, RecursionError):
        return None, "broken line"
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        return None, "no text"
    try:
        return decoded(text.encode(), limits)
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape
        return None, "not UTF-8"


class _Unpacked(io.RawIOBase):
    """The bytes of an iterator of chunks. Chunks begin at the same places whoever reads and from wherever on, so a
    damaged file always ends at the same line.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._left = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not len(self._left):
            self._left = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size


def _gzip_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Unpack all members; zeros behind the last one are padding. Raises EOFError and zlib.error."""
    inflate, packed = zlib.decompressobj(31), file.read(CHUNK)
    while packed:
        if chunk := inflate.decompress(packed, CHUNK):
            yield chunk
        packed = (inflate.unused_data if inflate.eof else inflate.unconsumed_tail) or file.read(CHUNK)
        if inflate.eof:
            while packed and not (packed := packed.lstrip(b"\0")):
                packed = file.read(CHUNK)
            if not packed:
                return
            inflate = zlib.decompressobj(31)
    raise EOFError("it is cut off")


def _zstandard_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Unpack all frames. Raises EOFError."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW)
    reader = unpacker.stream_reader(file, read_across_frames=True, closefd=False)
    try:
        while chunk := reader.read(CHUNK):
            yield chunk
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
