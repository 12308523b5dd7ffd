"""What a parquet file announces, checked before a decoder believes it.

A decoder allocates what page headers and the footer say. Both are read here first, with their own small parser, and
refused when they ask for more than a record may cost.
Source: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sigma.data.limits import RecordLimits
from sigma.data.thrift import CompactReader, ThriftError

ReadAt = Callable[[int, int], bytes]  # the bytes [start, end) of a file
MAGIC = b"PAR1"
FOOTER_BYTES = 16 << 20
FOOTER_STRUCTS = 200_000
FOOTER_ELEMENTS = 2_000_000  # 700 row groups of 12 columns have 320,000
TAIL = 64 << 10  # read at once: most footers are in it
PAGE_BYTES = 32 << 20
HEADER_BYTES = 1 << 16  # statistics in a page header hold whole values
GROUP_ROWS = 10_000_000
DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = range(4)
PAGE_DETAILS = {DATA_PAGE: (5, 2), DICTIONARY_PAGE: (7, 2), DATA_PAGE_V2: (8, 4)}  # its header, and the encoding in it
DELTA_BYTE_ARRAY = 7  # each value may repeat the one before it at no cost: the size of a page says nothing


class ParquetError(ValueError):
    """A file that is no parquet, is damaged, or asks for too much."""


def footer_span(read_at: ReadAt, size: int) -> tuple[int, bytes]:
    """(start, bytes) of the end of the file, with the whole footer, which is sound and not too large."""
    if size < 12:
        raise ParquetError(f"{size} bytes are no parquet file")
    start = max(0, size - TAIL)
    tail = read_at(start, size)
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != MAGIC or length > size - 12:
        raise ParquetError("no parquet footer")
    if length > FOOTER_BYTES:
        raise ParquetError(f"a footer of {length} bytes")
    if length + 8 > len(tail):
        start = size - 8 - length
        tail = read_at(start, size - len(tail)) + tail
    try:
        CompactReader(tail[-8 - length : -8], structs=FOOTER_STRUCTS, elements=FOOTER_ELEMENTS).struct()
    except ThriftError as error:
        raise ParquetError(f"footer: {error}") from error
    return start, tail


def chunk_span(column: Any, size: int) -> tuple[int, int]:
    """(start, end) of a column chunk from pyarrow's metadata, inside the file."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    end = start + column.total_compressed_size
    if not 4 <= start < end <= size - 8:
        raise ParquetError(f"a column at bytes {start} to {end} of {size}")
    return start, end


def check_pages(read_at: ReadAt, start: int, end: int, rows: int, limits: RecordLimits) -> int:
    """Walk the page headers of a flat column chunk; returns the unpacked size of its dictionary (0 without one)."""
    values = dictionary = 0
    while start < end and values < rows:
        window = read_at(start, min(end, start + 256))
        try:
            header, head = _page_header(window)
        except ThriftError:
            window = read_at(start, min(end, start + HEADER_BYTES))
            try:
                header, head = _page_header(window)
            except ThriftError as error:
                raise ParquetError(f"page header: {error}") from error
        kind, unpacked, packed = (header.get(i, -1) for i in (1, 2, 3))
        _check_sizes(unpacked, packed, end - start - head, limits)
        values += _values(header, kind)
        if kind == DICTIONARY_PAGE:
            dictionary += unpacked
        start += head + packed
    if values != rows:
        raise ParquetError(f"{values} values for {rows} rows")
    return dictionary


def _page_header(window: bytes) -> tuple[dict[int, Any], int]:
    reader = CompactReader(window)
    return reader.struct(), reader.at


def _check_sizes(unpacked: object, packed: object, left: int, limits: RecordLimits) -> None:
    if not isinstance(unpacked, int) or not isinstance(packed, int):
        raise ParquetError("a page without a size")
    if not 0 <= packed <= left or not 0 <= unpacked <= PAGE_BYTES:
        raise ParquetError(f"a page of {packed} bytes, {unpacked} unpacked")
    if unpacked > limits.ratio_from and unpacked > limits.ratio * packed:
        raise ParquetError(f"compression ratio: a page of {packed} bytes, {unpacked} unpacked")


def _values(header: dict[int, Any], kind: object) -> int:
    """Rows of a data page, 0 for another."""
    if not isinstance(kind, int) or kind not in PAGE_DETAILS:
        return 0
    place, encoding = PAGE_DETAILS[kind]
    details = header.get(place)
    details = details if isinstance(details, dict) else {}
    count = details.get(1)
    if not isinstance(count, int) or not 0 <= count <= GROUP_ROWS:
        raise ParquetError(f"a page of {count} values")
    if kind != DICTIONARY_PAGE and details.get(encoding) == DELTA_BYTE_ARRAY:
        raise ParquetError("encoding DELTA_BYTE_ARRAY is not read, its unpacked size has no bound")
    return 0 if kind == DICTIONARY_PAGE else count
