"""Whatever a parquet file announces, the sound row groups are read and the others are left out and counted."""

from __future__ import annotations

import gzip
import io
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma.data.limits import RecordLimits
from sigma.data.parquet import ParquetTexts
from sigma.data.parquet_checks import ParquetError, check_pages
from sigma.data.record import Block, Damaged
from tests.unit.data.parquet_writer import (
    DELTA_BYTE_ARRAY,
    GZIP,
    I32,
    RLE_DICTIONARY,
    SNAPPY,
    STRUCT,
    ZSTD,
    Group,
    Page,
    good_group,
    parquet_file,
    plain,
    varint,
    with_footer,
)

FIRST, LAST = good_group("the first", "the second"), good_group("the last")
BODY = plain([b"one", b"two"])


def read_all(content, **options):
    """All texts of a file, and what was left out: `file` and `group` for damage, and the reasons of records."""
    try:
        texts = ParquetTexts(lambda start, end: content[start:end], len(content), "s", "f.parquet", **options)
    except Damaged:
        return [], Counter({"file": 1})
    position, found, skipped = 0, [], Counter()
    while position is not None:
        try:
            block = texts.read(position)
        except Damaged as damage:
            block = Block([], damage.resume, Counter(group=1))
        assert block.next is None or block.next > position
        found += [record.text for record in block.records]
        skipped += block.skipped
        position = block.next
    return found, skipped


def group(*pages, rows=2, **options):
    return Group(list(pages), rows, **options)


def dictionary(entry: bytes, body: bytes, values: int) -> list[Page]:
    return [Page(plain([entry]), 1, kind=2), Page(body, values, encoding=RLE_DICTIONARY)]


BAD_GROUPS = {
    "unpacked size negative": group(Page(BODY, 2, unpacked=-1)),
    "unpacked size 2^31 - 1": group(Page(BODY, 2, unpacked=2**31 - 1), codec=SNAPPY),
    "unpacked size 2^40": group(Page(BODY, 2, unpacked=2**40), codec=SNAPPY),
    "unpacked size 33 MB": group(Page(BODY, 2, unpacked=33 << 20), codec=SNAPPY),
    "unpacked size beyond the ratio": group(Page(BODY, 2, unpacked=1 << 20), codec=SNAPPY),
    "unpacked size too small": group(Page(gzip.compress(BODY), 2, unpacked=5), codec=GZIP),
    "unpacked size too large": group(Page(gzip.compress(BODY), 2, unpacked=500), codec=GZIP),
    "packed size negative": group(Page(BODY, 2, lies={3: -5})),
    "packed size behind the chunk": group(Page(BODY, 2, lies={3: 10**6})),
    "packed size 2^31 - 1": group(Page(BODY, 2, lies={3: 2**31 - 1})),
    "packed size too small": group(Page(BODY, 2, lies={3: 4, 2: 4})),
    "no sizes": group(Page(BODY, 2, lies={2: None, 3: None})),
    "no type": group(Page(BODY, 2, lies={1: None})),
    "unknown type": group(Page(BODY, 2, kind=77)),
    "values too many": group(Page(BODY, 2000)),
    "values too few": group(Page(BODY, 1)),
    "values negative": group(Page(BODY, -2)),
    "values 2^31 - 1": group(Page(BODY, 2**31 - 1)),
    "no values": group(Page(b"", 0)),
    "no pages": group(Page(BODY, 2), lies={7: 3}),
    "no data header": group(Page(BODY, 2, lies={5: b"\0"})),
    "rows 10,000,000": group(Page(BODY, 10**7), rows=10**7),
    "DELTA_BYTE_ARRAY": group(Page(BODY, 2, encoding=DELTA_BYTE_ARRAY)),
    "unknown encoding": group(Page(BODY, 2, encoding=99)),
    "dictionary indices without a dictionary": group(Page(b"\x01\x04\x00", 2, encoding=RLE_DICTIONARY)),
    "index outside the dictionary": group(*dictionary(b"x", b"\x08\x04\x63", 2)),
    "two dictionaries": group(*dictionary(b"x", b"", 0)[:1] * 2, Page(b"\x01\x04\x00", 2, encoding=RLE_DICTIONARY)),
    "dictionary of 2^31 - 1 entries": group(Page(plain([b"x"]), 2**31 - 1, kind=2), Page(b"\x01\x04\x00", 2)),
    "string longer than its page": group(Page(b"\xff\xff\x00\x00ab" + BODY, 2)),
    "string of 4 GB": group(Page(b"\xff\xff\xff\xffab" + BODY, 2)),
    "string of negative length": group(Page(b"\xff\xff\xff\x7fab" + BODY, 2)),
    "page cut off": group(Page(BODY[:9], 2)),
    "bytes that are no snappy": group(Page(random.Random(1).randbytes(300), 2, unpacked=400), codec=SNAPPY),
    "snappy that says 4 GB": group(Page(varint(2**32 - 1) + b"\xfe\x01\x00" * 50, 2, unpacked=5000), codec=SNAPPY),
    "bytes that are no gzip": group(Page(random.Random(2).randbytes(300), 2, unpacked=400), codec=GZIP),
    "gzip cut off": group(Page(gzip.compress(BODY * 50)[:-20], 2, unpacked=len(BODY) * 50), codec=GZIP),
    "gzip bomb that lies": group(Page(gzip.compress(bytes(30 << 20)), 2, unpacked=1000), codec=GZIP),
    "gzip bomb": group(Page(gzip.compress(bytes(30 << 20)), 2, unpacked=30 << 20), codec=GZIP),
    "bytes that are no zstd": group(Page(random.Random(3).randbytes(300), 2, unpacked=400), codec=ZSTD),
    "unknown codec": group(Page(BODY, 2), codec=42),
    "codec negative": group(Page(BODY, 2), codec=-1),
    "chunk before the file": group(Page(BODY, 2), lies={9: -100}),
    "chunk at its magic": group(Page(BODY, 2), lies={9: 0}),
    "chunk behind the file": group(Page(BODY, 2), lies={9: 10**12}),
    "chunk at 2^63 - 1": group(Page(BODY, 2), lies={9: 2**63 - 1}),
    "chunk longer than the file": group(Page(BODY, 2), lies={7: 10**9}),
    "chunk of negative length": group(Page(BODY, 2), lies={7: -1}),
    "chunk in the footer": group(Page(BODY, 2), lies={9: 330}),
    "page header without end": group(Page(BODY, 2, lies={5: b"\x19\xfc\xff\xff\xff\x0f" * 9})),
    "page header nested 1,000 times": group(Page(BODY, 2, lies={5: b"\x1c" * 1000})),
    "page header that is noise": group(Page(BODY, 2, lies={1: b"\xff" * 60})),
    "page header with a number of 100 bits": group(Page(BODY, 2, lies={2: b"\xff" * 14 + b"\x01"})),
}


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_a_bad_row_group_takes_nothing_with_it_and_is_counted(name):
    content = parquet_file([FIRST, BAD_GROUPS[name], LAST])
    for keep_chunks in (True, False):
        texts, skipped = read_all(content, keep_chunks=keep_chunks)
        assert texts == ["the first", "the second", "the last"]
        assert skipped == Counter(group=1)


def footer_of(content: bytes) -> bytes:
    return content[-8 - int.from_bytes(content[-8:-4], "little") : -8]


GOOD = parquet_file([FIRST, LAST])
FOOTER = footer_of(GOOD)
HUGE_LIST = b"\xf5" + varint(2**31)
BAD_FILES = {
    "nothing": b"",
    "magic alone": b"PAR1",
    "magic twice": b"PAR1PAR1",
    "text": b"hello, this is no parquet file at all",
    "encrypted": GOOD[:-4] + b"PARE",
    "footer length 0": with_footer(b"PAR1", b""),
    "footer length too large": GOOD[:-8] + (10**6).to_bytes(4, "little") + b"PAR1",
    "footer length 2^32 - 1": GOOD[:-8] + b"\xff\xff\xff\xffPAR1",
    "footer length too small": GOOD[:-8] + (20).to_bytes(4, "little") + b"PAR1",
    "footer of zeros": with_footer(b"PAR1", bytes(200)),
    "footer of ones": with_footer(b"PAR1", b"\xff" * 200),
    "footer that is noise": with_footer(b"PAR1", random.Random(4).randbytes(500)),
    "footer nested 10,000 times": with_footer(b"PAR1", b"\x1c" * 10_000),
    "footer of 17 MB": with_footer(b"PAR1", bytes(17 << 20)),
    "footer of 300,000 structs": with_footer(b"PAR1", b"\x49\xfc" + varint(300_000) + bytes(300_000)),
    "list of 2^31 numbers": parquet_file([FIRST], lies={4: HUGE_LIST}),
    "list of 5,000,000 booleans": with_footer(b"PAR1", b"\x49\xf1" + varint(5_000_000) + bytes(5_000_000)),
    "schema empty": parquet_file([FIRST], lies={2: (STRUCT, [])}),
    "schema with 2^31 children": parquet_file([FIRST], lies={2: (STRUCT, [{4: (8, b"s"), 5: (I32, 2**31 - 1)}])}),
    "no column of text": GOOD.replace(b"text", b"Text"),
    "text is a number": parquet_file(
        [FIRST], lies={2: (STRUCT, [{4: (8, b"s"), 5: (I32, 1)}, {1: (I32, 1), 3: (I32, 0), 4: (8, b"text")}])}
    ),
    "rows negative": parquet_file([Group(FIRST.pages, -2)]),
    "rows 2^62": parquet_file([Group(FIRST.pages, 2**62)]),
    "row groups that are no structs": parquet_file([FIRST], lies={4: (I32, [1, 2, 3])}),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_without_a_sound_footer_is_left_out(name):
    assert read_all(BAD_FILES[name]) == ([], Counter(file=1))


def test_there_are_enough_of_them():
    assert len(BAD_GROUPS) + len(BAD_FILES) >= 70


@pytest.mark.parametrize("place", ["footer", "pages"])
def test_random_damage_never_raises_anything_else(place):
    """Bits that flip, bytes that go, pieces that come twice: 300 of each place."""
    start, end = (len(GOOD) - 8 - len(FOOTER), len(GOOD)) if place == "footer" else (0, len(GOOD) - 8 - len(FOOTER))
    rng = random.Random(place)
    for _ in range(300):
        at, size = rng.randrange(start, end), rng.randrange(1, 9)
        change = rng.choice([b"", rng.randbytes(size), GOOD[at : at + 2 * size], b"\xff" * size, bytes(size)])
        texts, _ = read_all(GOOD[:at] + change + GOOD[at + size :])
        assert len(texts) <= 3


def written(texts, **options):
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out, **options)
    return out.getvalue()


@pytest.mark.parametrize("bit", range(12))
def test_a_page_with_a_wrong_checksum_is_left_out(bit):
    content = written(["one", "two"] * 50, use_dictionary=False, compression="none", write_page_checksum=True)
    at = content.index(b"\x03\0\0\0one") + bit
    assert read_all(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]) == ([], Counter(group=1))


@pytest.mark.parametrize(
    "page, match",
    [
        (Page(bytes(1 << 20), 2, unpacked=(32 << 20) + 1), "33554433 unpacked"),
        (Page(bytes(1000), 2, unpacked=200_001), "compression ratio"),
    ],
    ids=["size", "ratio"],
)
def test_a_page_that_would_be_too_large_is_refused_before_it_is_unpacked(page, match):
    content = page.written()
    with pytest.raises(ParquetError, match=match):
        check_pages(lambda start, end: content[start:end], 0, len(content), 2, RecordLimits())


def test_an_encoding_whose_size_has_no_bound_is_refused():
    """Each value may repeat the one before it: a page of a few bytes unpacks to any size."""
    content = written(["x" * 5000] * 500, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    assert len(content) < 10_000
    assert read_all(content) == ([], Counter(group=1))


def test_a_dictionary_entry_that_is_meant_many_times_is_not_multiplied_in_memory():
    """One entry of 1 MB, 200 rows: 200 MB when each batch of rows holds them all."""
    entry = random.Random(5).randbytes(500_000).hex()
    content = written([entry] * 200, compression="zstd")
    assert len(content) < 2_000_000
    texts = ParquetTexts(lambda start, end: content[start:end], len(content), "s", "f")
    before = pa.total_allocated_bytes()
    block = texts.read(0)
    assert len(block.records) == 5, "a block ends when it has enough"
    assert pa.total_allocated_bytes() - before < 100 << 20


def test_rows_that_are_no_good_are_counted_one_by_one():
    column = pa.array([b"good", None, b"", b" \n", b"\xff\xfe", b"fine", b"x" * 300])
    out = io.BytesIO()
    pq.write_table(pa.table({"text": column}), out)
    texts, skipped = read_all(out.getvalue(), limits=RecordLimits(record_bytes=200))
    assert texts == ["good", "fine"]
    assert skipped == Counter({"empty": 3, "not UTF-8": 1, "too large": 1})


def test_a_record_that_takes_too_long_is_damage_of_its_row_group():
    content = parquet_file([FIRST, LAST])
    assert read_all(content, limits=RecordLimits(seconds=-1)) == ([], Counter(group=2))
