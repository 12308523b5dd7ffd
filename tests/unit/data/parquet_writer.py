"""Parquet files written field by field, so that every field can lie. One required column `text`.

The numbers are those of parquet.thrift; `Lie` replaces a value in the page header or in the footer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BYTE_ARRAY, UTF8, REQUIRED = 6, 0, 0
PLAIN, RLE, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 0, 3, 7, 8
NONE, SNAPPY, GZIP, BROTLI, ZSTD = 0, 1, 2, 4, 6
I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def zigzag(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def struct(fields: dict[int, tuple[int, Any]]) -> bytes:
    """Fields {number: (type, value)}; None leaves one out, bytes for a list or struct are taken as they are."""
    out, last = b"", 0
    for number, (kind, value) in sorted(fields.items()):
        if value is not None:
            step = number - last
            out += (bytes([step << 4 | kind]) if step < 16 else bytes([kind]) + zigzag(number)) + encode(kind, value)
            last = number
    return out + b"\0"


def encode(kind: int, value: Any) -> bytes:
    if isinstance(value, bytes) and kind != BINARY:
        return value
    if kind in (I32, I64):
        return zigzag(value)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind == STRUCT:
        return struct(value)
    inner, values = value
    size = bytes([len(values) << 4 | inner]) if len(values) < 15 else bytes([0xF0 | inner]) + varint(len(values))
    return size + b"".join(encode(inner, one) for one in values)


def plain(texts: list[bytes]) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


@dataclass
class Page:
    """A data page of `values` values, or a dictionary; `lies` replaces fields of its header."""

    body: bytes
    values: int
    unpacked: int | None = None
    kind: int = 0
    encoding: int = PLAIN
    lies: dict[int, Any] = field(default_factory=dict)

    def written(self) -> bytes:
        inner = {1: (I32, self.values), 2: (I32, self.encoding)}
        if self.kind == 0:
            inner |= {3: (I32, RLE), 4: (I32, RLE)}
        unpacked = len(self.body) if self.unpacked is None else self.unpacked
        fields: dict[int, tuple[int, Any]] = {
            1: (I32, self.kind),
            2: (I32, unpacked),
            3: (I32, len(self.body)),
            {0: 5, 2: 7}.get(self.kind, 6): (STRUCT, inner),
        }
        return struct(fields | {number: (fields[number][0], value) for number, value in self.lies.items()}) + self.body


@dataclass
class Group:
    """A row group of one column chunk; `lies` replaces fields of its ColumnMetaData."""

    pages: list[Page]
    rows: int
    codec: int = NONE
    lies: dict[int, Any] = field(default_factory=dict)


def good_group(*texts: str) -> Group:
    body = plain([text.encode() for text in texts])
    return Group([Page(body, len(texts))], len(texts))


def parquet_file(groups: list[Group], lies: dict[int, Any] | None = None, schema: bytes | None = None) -> bytes:
    """The file; `lies` replaces fields of the FileMetaData."""
    out, rows = b"PAR1", []
    for group in groups:
        pages = [page.written() for page in group.pages]
        dictionary = len(out) if group.pages and group.pages[0].kind == 2 else None
        meta: dict[int, tuple[int, Any]] = {
            1: (I32, BYTE_ARRAY),
            2: (LIST, (I32, [PLAIN, RLE])),
            3: (LIST, (BINARY, [b"text"])),
            4: (I32, group.codec),
            5: (I64, group.rows),
            6: (I64, sum(map(len, pages))),
            7: (I64, sum(map(len, pages))),
            9: (I64, len(out) + (len(pages[0]) if dictionary is not None else 0)),
            11: (I64, dictionary),
        }
        meta |= {number: (meta[number][0], value) for number, value in group.lies.items()}
        out += b"".join(pages)
        chunk = {2: (I64, 4), 3: (STRUCT, meta)}
        rows.append({1: (LIST, (STRUCT, [chunk])), 2: (I64, 9), 3: (I64, group.rows)})
    root = {4: (BINARY, b"schema"), 5: (I32, 1)}
    leaf = {1: (I32, BYTE_ARRAY), 3: (I32, REQUIRED), 4: (BINARY, b"text"), 6: (I32, UTF8)}
    footer: dict[int, tuple[int, Any]] = {
        1: (I32, 1),
        2: (LIST, schema or (STRUCT, [root, leaf])),
        3: (I64, sum(group.rows for group in groups)),
        4: (LIST, (STRUCT, rows)),
    }
    footer |= {number: (footer[number][0], value) for number, value in (lies or {}).items()}
    return with_footer(out, struct(footer))


def with_footer(body: bytes, footer: bytes, length: int | None = None) -> bytes:
    size = len(footer) if length is None else length
    return body + footer + size.to_bytes(4, "little") + b"PAR1"
