"""The text column of a parquet file, row by row from any row on, within the limits of a record.

Row groups are decoded in small batches, one after another; what is not used up is kept for the next call. A position
is the number of a row.
"""

from __future__ import annotations

import bisect
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from sigma.data.limits import RecordLimits, decoded
from sigma.data.parquet_checks import GROUP_ROWS, ParquetError, ReadAt, check_pages, chunk_span, footer_span
from sigma.data.record import Block, Damaged, Record

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TEXT = "text"
BLOCK_ROWS = 1000
BLOCK_CHARACTERS = 4 << 20
BATCH_ROWS = 128
BATCH_BYTES = 32 << 20
CHUNK_BYTES = 32 << 20  # of a packed column in a row group, kept in memory while it is read
KEPT_PLACES = 8


@dataclass(frozen=True)
class ScoreFilter:
    """Rows whose `column` is below `least` (or has no value) are left out as `score`."""

    column: str
    least: float


class ParquetTexts:
    """One open file. Raises Damaged where it cannot be read; what `read_at` raises goes through."""

    def __init__(
        self,
        read_at: ReadAt,
        size: int,
        source: str,
        path: str,
        score: ScoreFilter | None = None,
        limits: RecordLimits = RecordLimits(),  # noqa: B008 - frozen
        *,
        keep_chunks: bool = True,
    ) -> None:
        self._bytes = _Bytes(read_at, size)
        self._source, self._path, self._score, self._limits = source, path, score, limits
        self._keep_chunks = keep_chunks
        self._columns = [TEXT] + ([score.column] if score else [])
        try:
            self._file = self._open()
            metadata = self._file.metadata
            groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            if any(not 0 <= rows <= GROUP_ROWS for rows in groups):
                raise ParquetError("a row group of an impossible size")
        except ParquetError as error:
            raise Damaged(path, 0, str(error)) from error
        self._ends = list(accumulate(groups))
        self._next = -1  # the row that `_rows` gives next
        self._rows: Iterator[tuple[Any, Any]] = iter(())

    def read(self, row: int) -> Block:
        """Rows from `row` on, at most to the end of its row group."""
        if row >= (self._ends[-1] if self._ends else 0):
            return Block([], None)
        group = bisect.bisect_right(self._ends, row)
        first, end = (self._ends[group - 1] if group else 0), self._ends[group]
        block, at, characters = Block([], None), row, 0
        expected, self._next = self._next, -1
        try:
            if row != expected:
                self._rows = self._group_rows(group)
                for _ in range(row - first):
                    next(self._rows)
            while at < min(end, row + BLOCK_ROWS) and characters < BLOCK_CHARACTERS:
                text, score = next(self._rows)
                self._add(block, at, text, score)
                characters += 0 if text is None else len(text)
                at += 1
        except (ParquetError, StopIteration) as error:
            if at == row:
                raise Damaged(self._path, row, str(error) or "fewer rows than announced", self._after(end)) from error
        else:
            self._next = at if at < end else -1
        block.next = self._after(at)
        return block

    def _after(self, row: int) -> int | None:
        return row if row < self._ends[-1] else None

    def _open(self) -> pq.ParquetFile:
        """pyarrow's reader, once the footer is found sound."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._bytes.keep(*footer_span(self._bytes.read_at, self._bytes.size))
        try:
            file = pq.ParquetFile(
                pa.PythonFile(self._bytes, mode="r"), pre_buffer=False, page_checksum_verification=True
            )
            types = {field.name: field.type for field in file.schema_arrow}
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise ParquetError(f"footer: {error}") from error
        text = types.get(TEXT)
        if text is None or not any(
            check(text)
            for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
        ):
            raise ParquetError(f"its column `{TEXT}` is {text or 'missing'}")
        if self._score and not pa.types.is_primitive(types.get(self._score.column, pa.null())):
            raise ParquetError(f"it has no numbers in a column `{self._score.column}`")
        return file

    def _group_rows(self, group: int) -> Iterator[tuple[Any, Any]]:
        """(text, score) of every row of a group. Raises ParquetError."""
        import pyarrow as pa

        try:
            dictionary = self._check_group(group)
            batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, dictionary)))
            batches = self._file.iter_batches(batch_rows, [group], self._columns, use_threads=False)
            for batch in self._timed(batches):
                texts = batch.column(TEXT)
                try:
                    values = texts.to_pylist()
                except UnicodeDecodeError:
                    values = texts.cast(pa.large_binary()).to_pylist()
                scores = batch.column(self._score.column).to_pylist() if self._score else [None] * len(values)
                yield from zip(values, scores, strict=True)
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise ParquetError(f"row group {group}: {error}") from error

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; each may take as long as its slowest record may."""
        while True:
            start = time.thread_time()
            batch = next(batches, None)
            if batch is None:
                return
            if time.thread_time() - start > self._limits.seconds:
                raise ParquetError(f"a record that takes more than {self._limits.seconds:g} s")
            yield batch

    def _check_group(self, group: int) -> int:
        """Check all pages that will be decoded, and keep them in memory; the size of the largest dictionary."""
        metadata, dictionary = self._file.metadata.row_group(group), 0
        self._bytes.forget()
        for index in range(metadata.num_columns):
            column = metadata.column(index)
            if column.path_in_schema not in self._columns:
                continue
            start, end = chunk_span(column, self._bytes.size)
            if self._keep_chunks:
                if end - start > CHUNK_BYTES:
                    raise ParquetError(f"row group {group}: {end - start} packed bytes of text, {CHUNK_BYTES} allowed")
                self._bytes.keep(start, self._bytes.read_at(start, end))
            dictionary = max(dictionary, check_pages(self._bytes.read_at, start, end, metadata.num_rows, self._limits))
        return dictionary

    def _add(self, block: Block, row: int, value: Any, score: Any) -> None:
        """Add a row to a block, or count why not."""
        if self._score and (score is None or not score >= self._score.least):
            text, reason = None, "score"
        elif value is None:
            text, reason = None, "empty"
        else:
            text, reason = _checked(value, self._limits)
        if text is not None:
            block.records.append(Record(self._source, f"{self._path}:{row}", text))
            return
        block.skipped[reason] += 1
        if reason != "score" and len(block.places) < KEPT_PLACES:
            block.places.append(f"{self._path}, row {row}: {reason}")


def _checked(value: str | bytes, limits: RecordLimits) -> tuple[str | None, str]:
    """Text of a row, or None and why it is left out."""
    if isinstance(value, bytes) or len(value) > limits.record_bytes // 4:
        return decoded(value if isinstance(value, bytes) else value.encode(), limits)
    return (value, "") if value and not value.isspace() else (None, "empty")


class _Bytes(io.RawIOBase):
    """A file for pyarrow over `read_at`; spans that are kept are read from memory."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self._source, self.size = read_at, size
        self._kept: list[tuple[int, bytes]] = []
        self._at = 0

    def keep(self, start: int, content: bytes) -> None:
        self._kept.append((start, content))

    def forget(self) -> None:
        """Drop all spans."""
        self._kept.clear()

    def read_at(self, start: int, end: int) -> bytes:
        for first, content in self._kept:
            if first <= start and end <= first + len(content):
                return content[start - first : end - first]
        return self._source(start, end)

    def read(self, size: int | None = -1) -> bytes:
        end = self.size if size is None or size < 0 else min(self.size, self._at + size)
        content = self.read_at(self._at, end) if end > self._at else b""
        self._at += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
