"""The whole stream over real clients and a server on this machine that fails, dies and comes back."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter

import pytest

from sigma.config.data import DataSection
from sigma.data.backends import build_stream
from sigma.data.feed import Feed
from sigma.data.journal import FILE_NAME
from sigma.data.mixture import Group
from sigma.data.outages import Limits
from sigma.data.quality.gate import build_gate
from sigma.data.record import Record
from sigma.data.stream import BatchStream
from sigma.data.stream_settings import StreamSettings
from tests.unit.data.loopback import Plan, loopback_hub
from tests.unit.data.remote.conftest import SOURCES, stream_of
from tests.unit.data.streams import go_to, local_groups, records_of, snapshot, take, tallied

NAMES = ("fineweb", "cosmopedia", "commoncrawl")
DEADLINE_S = 1.5


def hybrid(url, corpus, tokenizer, journal, *, workers=2, prefetch=2, resume_s=30.0, length=256, **settings):
    """What `build_stream` makes of hybrid, with small windows and a hasty client."""
    gate = build_gate(DataSection(seq_len=8))
    natural, *others = local_groups(corpus, tokenizer, 0)
    feeds = tuple(Feed(stream_of(SOURCES[name](url)), tokenizer, gate) for name in NAMES)
    limits = Limits(DEADLINE_S, resume_s)
    options = StreamSettings(4, length, prefetch, workers, dedup_window=50, limits=limits, journal=journal, **settings)
    return BatchStream([Group(0.8, feeds, (0.3, 0.3, 0.4), natural.feeds[0]), *others], tokenizer, options)


def sha(batches):
    return hashlib.sha256(json.dumps(batches).encode()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    """The models of the gate are read while the first batches come from the bundled text."""
    build_gate(DataSection(seq_len=8)).check(Record("commoncrawl", "1", "Some English words about nothing. " * 20))


@pytest.fixture
def build(tiny_corpus, bpe, tmp_path):
    made = []

    def make(url, folder="run", **settings):
        (tmp_path / folder).mkdir(exist_ok=True)
        made.append(hybrid(url, tiny_corpus, bpe, tmp_path / folder / FILE_NAME, **settings))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


def accepted(url, name, n):
    """The first n records of a source that the gate keeps, without the stream and without faults."""
    source, gate, ids = stream_of(SOURCES[name](url)), build_gate(DataSection(seq_len=8)), []
    while len(ids) < n:
        assert source.ready(20), source.failure
        record = next(source)
        if gate.check(record) is None:
            ids.append(record.id)
    source.close()
    return ids


def batches_with_every_source(stream, n, *, more_than):
    """n batches, and then more until every source has given: on a slow machine an outage can outlast n of them."""
    batches, end = take(stream, n), time.monotonic() + 20
    while min(len(records_of(batches, name)) for name in NAMES) <= more_than and time.monotonic() < end:
        time.sleep(0.05)
        batches += take(stream, 1)
    return batches


@pytest.mark.parametrize("seed", range(3))
def test_the_records_of_a_run_with_faults_are_those_of_its_journal_and_none_is_lost(build, tmp_path, seed):
    with loopback_hub(documents=45, plan=Plan.seeded(seed, 0.4)) as hub:
        batches = batches_with_every_source(build(hub.url), 60, more_than=4)
        faults = sum(hub.plan.given.values())
    assert faults >= 27, "80 in the three runs"
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / FILE_NAME).write_bytes((tmp_path / "run" / FILE_NAME).read_bytes())
    with loopback_hub(documents=45) as hub:
        again = build(hub.url, "replay", workers=0, prefetch=0)
        assert sha(take(again, len(batches))) == sha(batches)
        assert tallied(again)["data_divergences"] == 0
        dropped = tallied(again)["data_dropped_near_duplicate"]
        for name in NAMES:
            ids = records_of(batches, name)
            assert len(ids) > 4
            expected = accepted(hub.url, name, len(ids) + dropped)
            assert is_subsequence(ids, expected), "in order, none twice, only near-duplicates left out"
            assert len(Counter(expected[: expected.index(ids[-1]) + 1]) - Counter(ids)) <= dropped


def is_subsequence(some, whole):
    rest = iter(whole)
    return all(one in rest for one in some)


def test_kills_over_the_network_change_no_batch(build, tmp_path):
    chooser, held, at, seen = random.Random(4), None, 0, {}
    with loopback_hub(documents=45, plan=Plan.seeded(9, 0.2)) as hub:
        for life in range(6):
            stream = build(hub.url, workers=(0, 1, 4)[life % 3], prefetch=life % 3)
            at = held[0] if held else 0
            if held:
                go_to(stream, held[1])
            for number in range(at, at + chooser.randrange(2, 9)):
                batch = take(stream, 1)[0]
                assert seen.setdefault(number, batch) == batch
                if chooser.random() < 0.4:
                    held = (number + 1, snapshot(stream))
            stream.close()
    assert len(seen) > 8
    with loopback_hub(documents=45) as hub:
        assert sha(take(build(hub.url), len(seen))) == sha([seen[number] for number in sorted(seen)])


def test_the_first_batch_comes_within_two_seconds_without_a_network(monkeypatch, bpe, tmp_path):
    with loopback_hub(documents=0) as hub:
        url = hub.url
    for name in ("HF_ENDPOINT", "COMMONCRAWL_ENDPOINT"):
        monkeypatch.setenv(name, url)
    data = DataSection(data_backend="hybrid", seq_len=256, bootstrap_seed_batches=3)
    began = time.monotonic()
    stream = build_stream(data, 1, bpe, 8, run_dir=tmp_path)
    told = []
    stream.listen(lambda event, **details: told.append((event, details["source"])), lambda: False)
    stream.next_batch()
    assert time.monotonic() - began < 2
    began = time.monotonic()
    take(stream, 9)
    assert time.monotonic() - began < data.source_read_timeout_sec + 2
    stream.close()
    assert sorted(told) == [("source_absent", name) for name in sorted(NAMES)]


def test_sources_that_die_in_the_middle_never_hold_the_loop_and_come_back(build):
    waits, sources = [], []
    with loopback_hub(documents=45) as hub:
        stream = build(hub.url, length=2048)
        for number in range(120):
            if number == 5:
                hub.die()
            if number == 80:
                hub.revive()
                time.sleep(0.5)
            began = time.monotonic()
            batch = take(stream, 1)[0]
            waits.append(time.monotonic() - began)
            sources.append({source for source, _ in batch["records"]} & set(NAMES))
    assert max(waits) < DEADLINE_S + 1.0
    assert set().union(*sources[:5])
    assert not set().union(*sources[70:79])
    assert set().union(*sources[90:]) == set(NAMES)
    assert tallied(stream)["data_outages"] >= 3
