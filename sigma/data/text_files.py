"""Local text files, cut into documents. A position is a byte offset."""

from __future__ import annotations

from pathlib import Path

from sigma.data.limits import RecordLimits, decoded
from sigma.data.record import Block, Record

DOCUMENT_BYTES = 64 << 10
BLOCK_DOCUMENTS = 64
PIECE = 1 << 20
KEPT_PLACES = 8
BOM = b"\xef\xbb\xbf"


def skip(block: Block, reason: str, place: str) -> None:
    """Count a record that is left out."""
    block.skipped[reason] += 1
    if len(block.places) < KEPT_PLACES:
        block.places.append(f"{place}: {reason}")


def cut_length(data: bytes) -> int:
    """Where to cut a longer text: behind the last paragraph of `data`, else the last line, the last word, or at least
    not inside a character.
    """
    for mark in (b"\n\n", b"\n\r\n", b"\n", b" "):
        if (at := data.rfind(mark)) > 0:
            return at + len(mark)
    end = len(data)
    while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:  # continuation bytes
        end -= 1
    return end - 1 if end > 1 and data[end - 1] >= 0xC0 else len(data)


def read_text(path: Path, name: str, source: str, position: int, limits: RecordLimits) -> Block:
    """Documents of at most DOCUMENT_BYTES; joined they are the file (without a byte order mark)."""
    block = Block([], None)
    with path.open("rb") as file:
        file.seek(position)
        for _ in range(BLOCK_DOCUMENTS):
            data = file.read(DOCUMENT_BYTES + 1)
            if len(data) > DOCUMENT_BYTES:
                data = data[: cut_length(data[:DOCUMENT_BYTES])]
                file.seek(position + len(data))
            if not data:
                return block
            text, reason = decoded(data.removeprefix(BOM) if position == 0 else data, limits)
            if text is None:
                skip(block, reason, f"{name}, line {_line_of(path, position, data)}")
            else:
                block.records.append(Record(source, f"{name}:{position}", text))
            position += len(data)
        block.next = position if file.read(1) else None
    return block


def _line_of(path: Path, position: int, data: bytes) -> int:
    """The line (from 1) where the document at `position` is no UTF-8, or begins."""
    try:
        data.decode()
        bad = 0
    except UnicodeDecodeError as error:
        bad = error.start
    lines = 1 + data[:bad].count(b"\n")
    with path.open("rb") as file:
        while position > 0 and (piece := file.read(min(PIECE, position))):
            lines += piece.count(b"\n")
            position -= len(piece)
    return lines
