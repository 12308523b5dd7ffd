import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sigma.data.feed import Feed
from sigma.data.generators import GeneratorSource
from sigma.data.quality.gate import Verdict
from sigma.data.record import DataError, Unavailable
from sigma.data.window_source import WindowSource
from tests.unit.data.streams import SIZE, SOON, Memory, NoSpam


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr("sigma.data.feed.CHUNK_RECORDS", 4)


@pytest.fixture(params=[0, 1, 4])
def open_feed(request, byte_tokenizer):
    """A feed over a memory, with 0, 1 and 4 workers."""
    pool = ThreadPoolExecutor(request.param) if request.param else None
    feeds = []

    def make(memory, gate=None, **options):
        feed = Feed(WindowSource(memory, 1, size=SIZE, pause=SOON), byte_tokenizer, gate or NoSpam(), **options)
        feed.start(pool, request.param + 1)
        feeds.append(feed)
        return feed

    yield make
    for feed in feeds:
        feed.close()
    if pool:
        pool.shutdown()


def take(feed, n):
    out = []
    while len(out) < n:
        assert feed.ready(10)
        out.append(feed.take())
    return out


def test_documents_are_the_kept_records_in_order_with_their_tokens(open_feed, byte_tokenizer):
    source, expected = WindowSource(Memory("red"), 1, size=SIZE, pause=SOON), []
    while len(expected) < 60:
        assert source.ready(10)
        record = next(source)
        if not record.text.startswith("spam"):
            expected.append((record, source.cursor()))
    source.close()
    documents = take(open_feed(Memory("red")), 60)
    assert [document.name for document in documents] == [(record.source, record.id) for record, _ in expected]
    assert [document.after for document in documents] == [cursor for _, cursor in expected]
    for document, (record, _) in zip(documents, expected, strict=True):
        assert document.ids.tolist() == [1, *byte_tokenizer.encode(record.text).tolist(), 2]
        assert document.ids.dtype == np.int32
        assert document.signature is not None


def test_the_position_follows_what_was_taken_and_not_what_is_prepared(open_feed):
    feed = open_feed(Memory("red"))
    whole = take(feed, 30)
    for n in (0, 1, 7, 30):
        other = open_feed(Memory("red"))
        start = other.cursor()
        documents = take(other, n)
        assert other.cursor() == (documents[-1].after if n else start)
        third = open_feed(Memory("red"))
        third.seek(other.cursor())
        assert [document.name for document in take(third, 30 - n)] == [document.name for document in whole[n:]]


def test_every_dropped_record_is_counted_once_before_the_document_behind_it(open_feed):
    documents = take(open_feed(Memory("red")), 60)
    dropped = sum((document.dropped for document in documents), Counter())
    source, seen = WindowSource(Memory("red"), 1, size=SIZE, pause=SOON), []
    while not seen or (seen[-1].source, seen[-1].id) != documents[-1].name or len(seen) < 60:
        assert source.ready(10)
        seen.append(next(source))
    source.close()
    assert dropped == Counter(spam=sum(record.text.startswith("spam") for record in seen))


class NothingBut(NoSpam):
    """Keeps one record of a hundred."""

    def __init__(self):
        self.count = 0

    def examine(self, record):
        self.count += 1
        return Verdict(None) if record.id == "f3#2.3" else Verdict("dull")


def test_what_is_dropped_and_damaged_at_the_end_of_a_chunk_comes_with_the_next_document(open_feed):
    memory = Memory("red")
    memory.rotten = {(0, 0), (2, 1)}
    first, second = take(open_feed(memory, NothingBut()), 2)
    assert first.dropped.total() + second.dropped.total() >= len(memory.all()) - 1 - 8
    assert {(damage.file, damage.position) for one in (first, second) for damage in one.damage} == {
        ("f0", 0),
        ("f2", 1),
    }


def test_a_dead_source_is_not_ready_says_why_and_loses_nothing(open_feed):
    whole = [document.name for document in take(open_feed(Memory("red")), 40)]
    memory = Memory("red")
    memory.dead = True
    feed = open_feed(memory)
    assert not feed.ready(0.2)
    assert feed.failure == "no route"
    with pytest.raises(Unavailable, match="no route"):
        feed.take()
    memory.dead = False
    assert [document.name for document in take(feed, 40)] == whole


class Changed(Memory):
    def files(self):
        raise DataError("the files are others now")


def test_an_error_that_the_user_can_mend_stops_a_strict_feed_only(open_feed):
    feed = open_feed(Changed("red"))
    assert not feed.ready(0.2)
    assert "others now" in feed.failure
    with pytest.raises(DataError, match="others now"):
        open_feed(Changed("red"), strict=True).ready(5)


class Dull(NoSpam):
    def examine(self, record):
        return Verdict("dull")


def test_a_source_of_which_nothing_is_kept_holds_nobody_longer_than_asked(open_feed):
    feed = open_feed(Memory("red"), Dull())
    began = time.monotonic()
    assert not feed.ready(0.3)
    assert time.monotonic() - began < 1.0


def test_an_error_in_a_worker_reaches_the_one_who_asks(open_feed):
    class Broken(NoSpam):
        def examine(self, record):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        take(open_feed(Memory("red"), Broken()), 1)


def test_a_local_source_always_has_a_document(byte_tokenizer):
    feed = Feed(GeneratorSource("parity", 0), byte_tokenizer)
    assert [feed.take().name for _ in range(9)] == [("parity", str(i)) for i in range(9)]
    assert feed.failure is None


def test_chunks_end_with_the_record_that_is_long_enough(byte_tokenizer, monkeypatch):
    monkeypatch.setattr("sigma.data.feed.CHUNK_CHARACTERS", 10)
    sizes = []
    monkeypatch.setattr(
        "sigma.data.tokenizer.Tokenizer.encode_batch",
        lambda self, texts: sizes.append(len(texts)) or [self.encode(text) for text in texts],
    )
    feed = Feed(GeneratorSource("parity", 0), byte_tokenizer)
    for _ in range(5):
        feed.take()
    assert set(sizes) == {1}
