"""WARC records out of gzip members: framed here, read by fastwarc, or by warcio where fastwarc is not installed.

Wrong lengths are the normal case in real files. A record is handed to the parser only when its frame is sound: a
version line, a header of plain lines with one decimal Content-Length, that many bytes, and then an empty line or the
end.
"""

from __future__ import annotations

import io
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sigma.data.limits import RecordLimits, reason_too_large
from sigma_kernels import counters

MAGIC = b"\x1f\x8b\x08"
PIECE = 32 << 10
STEP = 1 << 20  # bytes unpacked between two looks at the limits
ENOUGH = 2048  # packed bytes from which the first unpacked ones surely come
_VERSION = re.compile(rb"WARC/1\.[01]\r\n")
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d{1,9})(?=\r\n|$)")
_ANY_LENGTH = re.compile(rb"\r\ncontent-length[ \t]*:", re.IGNORECASE)
_NO_LINES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n|\n[ \t]")  # or continued lines


@dataclass(frozen=True)
class Member:
    """What stands at an offset: unpacked `content`, or the `reason` why there is none. It ends before `end`."""

    end: int
    content: bytes = b""
    reason: str = ""


class SlowError(Exception):
    """A record took longer than it may."""


def read_member(data: memoryview, at: int, last: bool, limits: RecordLimits) -> Member | None:
    """Unpack the gzip member at `at`; None when it goes on behind `data`, which is not the `last` of the file. Raises
    SlowError.

    After a damaged one, `end` is where the next sound member begins (or is to be looked for).
    """
    if data[at : at + 3] != MAGIC[: len(data) - at]:
        return Member(next_member(data, at + 1, last), reason="broken gzip")
    inflate, parts, out, pos = zlib.decompressobj(31), [], 0, at
    until = time.thread_time() + limits.seconds
    try:
        while not inflate.eof:
            piece = inflate.unconsumed_tail or data[pos : pos + PIECE]
            if not len(piece):
                return Member(next_member(data, at + 1, last), reason="cut off") if last else None
            pos += 0 if inflate.unconsumed_tail else len(piece)
            parts.append(inflate.decompress(piece, STEP))
            out += len(parts[-1])
            taken = pos - len(inflate.unconsumed_tail) - len(inflate.unused_data) - at
            reason = reason_too_large(out, taken, limits)
            if taken > limits.record_bytes + STEP:  # a header or empty blocks without end
                reason = "too large"
            if reason:
                return Member(next_member(data, at + 1, last), reason=reason)
            if time.thread_time() > until:
                raise SlowError
    except zlib.error:
        return Member(next_member(data, at + 1, last), reason="broken gzip")
    return Member(pos - len(inflate.unused_data), b"".join(parts))


def next_member(data: memoryview, at: int, last: bool) -> int:
    """The first offset from `at` on where a gzip member with a WARC record begins; if there is none, the end. Unless
    `data` is the `last` of the file, also where it could begin with the bytes to come.
    """
    raw = data.obj
    assert isinstance(raw, bytes)
    while (at := raw.find(MAGIC, at)) >= 0:
        try:
            head = zlib.decompressobj(31).decompress(data[at : at + ENOUGH], 5)
        except zlib.error:
            head = b"no"
        if head == b"WARC/" or (not last and len(raw) - at < ENOUGH and b"WARC/".startswith(head)):
            return at
        at += 1
    return len(raw) - (0 if last else next((n for n in (2, 1) if raw.endswith(MAGIC[:n])), 0))


def frames(content: bytes, limits: RecordLimits) -> Iterator[bytes | None]:
    """The records of an unpacked member; None for what has no sound frame, and nothing after it."""
    at = 0
    while at < len(content):
        head_end = content.find(b"\r\n\r\n", at, at + limits.header_bytes)
        head = content[at:head_end]
        lengths = _LENGTH.findall(head) if head_end >= 0 and not _NO_LINES.search(head) else []
        if not _VERSION.match(head) or len(lengths) != 1 or len(_ANY_LENGTH.findall(head)) != 1:
            yield None
            return
        end = head_end + 4 + int(lengths[0])
        if end > len(content) or content[end : end + 4] not in (b"\r\n\r\n", b"\r\n", b""):
            yield None
            return
        yield content[at:end] + b"\r\n\r\n"
        at = end
        while content[at : at + 2] == b"\r\n":
            at += 2


Parse = Callable[[bytes], tuple[str, bytes]]  # a framed record -> WARC-Type and body


@cache
def warc_parser() -> tuple[Literal["fastwarc", "warcio"], Parse]:
    """The parser that is installed, chosen here and nowhere else."""
    try:
        import fastwarc.warc  # noqa: F401 # pyright: ignore[reportMissingModuleSource]
    except ImportError:
        return "warcio", parse_with_warcio
    return "fastwarc", parse_with_fastwarc


def parse_record(record: bytes) -> tuple[str, bytes] | None:
    """WARC-Type and body of a framed record, None when the parser rejects it. Counts `warc.<parser>`."""
    name, parse = warc_parser()
    counters.add(f"warc.{name}")
    return parse_or_none(parse, record)


def parse_or_none(parse: Parse, record: bytes) -> tuple[str, bytes] | None:
    """The result of a parser; None for whatever it raises and for a body that is not as long as it should be."""
    try:
        kind, body = parse(record)
    except Exception:  # noqa: BLE001 - a parser of foreign bytes may raise anything, and all of it means: no record
        return None
    expected = len(record) - 4 - (record.index(b"\r\n\r\n") + 4)
    return (kind, body) if len(body) == expected else None


def parse_with_fastwarc(record: bytes) -> tuple[str, bytes]:
    from fastwarc.warc import ArchiveIterator  # pyright: ignore[reportMissingModuleSource]

    for found in ArchiveIterator(io.BytesIO(record), parse_http=False, stream_detect=False):
        return found.headers["WARC-Type"].strip().lower(), found.reader.read()
    raise ValueError("no record")


def parse_with_warcio(record: bytes) -> tuple[str, bytes]:
    from warcio.archiveiterator import ArchiveIterator

    for found in ArchiveIterator(io.BytesIO(record), no_record_parse=True):
        kind = found.rec_headers.get_header("WARC-Type")
        if kind is None:
            break
        return kind.strip().lower(), found.raw_stream.read()
    raise ValueError("no record")
