"""Whatever stands between two sound records, they are read, and what is left out is counted."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace

import pytest

from sigma.data.limits import RecordLimits
from sigma.data.record import Damaged, Unavailable
from sigma.data.remote.common_crawl import CommonCrawl
from sigma.data.remote.ranges import RangeFile
from sigma.data.remote.warc import (
    frames,
    parse_or_none,
    parse_record,
    parse_with_fastwarc,
    parse_with_warcio,
    read_member,
    warc_parser,
)
from sigma_kernels import counters
from tests.unit.data.layouts import crawl_files, member, wet_record
from tests.unit.data.loopback import loopback_hub
from tests.unit.data.remote.conftest import HASTY
from tests.unit.data.remote.warc_cases import cases

CASES = cases()
CRAWL = "CC-MAIN-2025-33"
BEFORE, AFTER = wet_record("the record before", 8), wet_record("the record after", 9)
NAMES = list(CASES)


@pytest.fixture(scope="module")
def hub():
    wets = [member(BEFORE) + case.between + member(AFTER) for case in CASES.values()]
    with loopback_hub(0, crawl_files(CRAWL, wets)) as hub:
        yield hub


@pytest.fixture(scope="module")
def crawl(hub):
    return CommonCrawl(seed=1, crawls=[CRAWL], data_url=hub.url, index_url=hub.url)


def read_all(collection, file):
    """All texts of a file, and what was left out."""
    position, texts, skipped = 0, [], Counter()
    while position is not None:
        block = collection.read(file, position)
        assert block.next is None or block.next > position
        texts += [record.text for record in block.records]
        skipped += block.skipped
        position = block.next
    return texts, skipped


@pytest.mark.parametrize("name", NAMES)
def test_a_malformed_record_takes_nothing_with_it_and_is_counted(crawl, name):
    texts, skipped = read_all(crawl, NAMES.index(name))
    assert texts == ["the record before", *CASES[name].texts, "the record after"]
    assert skipped == CASES[name].skipped


def test_there_are_more_than_120_of_them():
    assert len(CASES) >= 120


def test_all_of_them_in_one_file_leave_the_records_that_a_sound_file_has():
    """Also when every range ends in the middle of something."""
    content, texts, skipped = b"", [], Counter()
    for number, case in enumerate(CASES.values()):
        if len(case.between) < 100_000:
            content += case.between + member(wet_record(f"between {number}"))
            texts += [*case.texts, f"between {number}"]
            skipped += case.skipped
    for size in (4 << 20, 20_011):
        with loopback_hub(0, crawl_files(CRAWL, [content])) as hub:
            http = replace(HASTY, range_bytes=size)
            crawl = CommonCrawl(seed=1, crawls=[CRAWL], data_url=hub.url, index_url=hub.url, http=http)
            found, left_out = read_all(crawl, 0)
        assert found == texts
        ranges = len(content) // size  # damage that a range ends in is met again in the next one
        assert skipped.total() <= left_out.total() <= skipped.total() + ranges


@pytest.mark.parametrize("name", NAMES)
def test_fastwarc_and_warcio_read_the_same(name):
    """The fallback gives the records of the first choice, so a run may go on where only the other is installed."""
    data = memoryview(CASES[name].between)
    found = read_member(data, 0, True, RecordLimits()) if len(data) else None
    for frame in frames(found.content, RecordLimits()) if found else ():
        if frame is not None:
            first = parse_or_none(parse_with_fastwarc, frame)
            assert first == parse_or_none(parse_with_warcio, frame)


def test_a_record_larger_than_a_range_is_read_whole():
    text = CASES["a line of 1 MB"].texts[0]
    wets = [member(wet_record("first")) + member(wet_record(text)) + member(wet_record("last"))]
    with loopback_hub(0, crawl_files(CRAWL, wets)) as small:
        http = replace(HASTY, range_bytes=150_000)
        crawl = CommonCrawl(seed=1, crawls=[CRAWL], data_url=small.url, index_url=small.url, http=http)
        assert read_all(crawl, 0)[0] == ["first", text, "last"]
        assert len(small.requests) > 3


def test_limits_are_those_that_are_given():
    wets = [member(wet_record("a longer record")) + member(wet_record("short"))]
    with loopback_hub(0, crawl_files(CRAWL, wets)) as small:
        urls = {"data_url": small.url, "index_url": small.url}
        limits = RecordLimits(record_bytes=len(wet_record("short")) + 2)
        assert read_all(CommonCrawl(seed=1, crawls=[CRAWL], limits=limits, **urls), 0) == (
            ["short"],
            Counter({"too large": 1}),
        )
        slow = CommonCrawl(seed=1, crawls=[CRAWL], limits=RecordLimits(seconds=-1), **urls)
        with pytest.raises(Damaged, match="takes more than") as caught:
            slow.read(0, 0)
        assert caught.value.resume == 1, "the next sound member is looked for from there"


def test_a_header_of_gzip_without_end_is_given_up():
    """A file name in a gzip header may go on for ever and gives no output."""
    endless = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (1 << 20)
    limits = RecordLimits(record_bytes=100_000)
    after = member(wet_record("after"))
    assert read_member(memoryview(endless), 0, False, limits) is None
    longer = memoryview(b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (2 << 20) + after)
    found = read_member(longer, 0, False, limits)
    assert (found.reason, bytes(longer[found.end :])) == ("too large", after)


def test_a_file_that_answers_differently_twice_is_not_believed():
    wets = [member(wet_record("one")) + bytes(100) + member(wet_record("two"))]
    with loopback_hub(0, crawl_files(CRAWL, wets)) as small:
        crawl = CommonCrawl(seed=1, crawls=[CRAWL], data_url=small.url, index_url=small.url, http=HASTY)
        calls, read_at = [], RangeFile.read_at

        def other(self, start, end):
            calls.append(start)
            content = read_at(self, start, end)
            return content if len(calls) == 1 else content[:-1] + b"!"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RangeFile, "read_at", other)
            with pytest.raises(Unavailable, match="two answers"):
                crawl.read(0, 0)
        assert read_all(crawl, 0) == (["one", "two"], Counter({"broken gzip": 1}))


def test_without_fastwarc_warcio_reads_and_is_counted(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastwarc.warc", None)
    warc_parser.cache_clear()
    try:
        assert parse_record(wet_record("text")) == ("conversion", b"text")
    finally:
        warc_parser.cache_clear()
    assert counters.snapshot() == {"warc.warcio": 1}
