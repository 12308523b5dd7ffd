"""Deadlines, outages and their end, in streams whose sources the test holds in its hand."""

import json
import threading
import time

import pytest

from sigma.data.journal import FILE_NAME
from sigma.data.outages import Limits
from sigma.data.quality.gate import Verdict
from sigma.data.stream import StopWaitingError
from tests.unit.data.streams import QUICK, Memory, NoSpam, go_to, remote_stream, snapshot, take, tallied, trio


class Slow(Memory):
    """A collection whose reads wait for an event."""

    def __init__(self, name="slow"):
        super().__init__(name)
        self.go = threading.Event()

    def read(self, file, position):
        self.go.wait(30)
        return super().read(file, position)

    def close(self):
        self.go.set()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr("sigma.data.feed.CHUNK_RECORDS", 3)


@pytest.fixture
def build(tiny_corpus, byte_tokenizer, tmp_path):
    made = []

    def make(memories, **settings):
        settings = {"gate": NoSpam(), "dedup_window": 7, "journal": tmp_path / FILE_NAME} | settings
        made.append(remote_stream(tiny_corpus, byte_tokenizer, memories, **settings))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


def listen(stream, should_stop=lambda: False):
    told = []
    stream.listen(lambda event, **details: told.append((event, details)), should_stop)
    return told


def journal(tmp_path, *kinds):
    rows = [json.loads(line) for line in (tmp_path / FILE_NAME).read_bytes().splitlines()]
    return [row for row in rows if row["kind"] in kinds]


@pytest.mark.parametrize("workers, prefetch", [(0, 0), (2, 2)])
def test_with_all_sources_dead_the_batches_are_those_of_the_standby(build, byte_tokenizer, workers, prefetch):
    dead = trio()
    for memory in dead:
        memory.dead = True
    first = build(dead, workers=workers, prefetch=prefetch)
    told = listen(first)
    batches = take(first, 30)
    bootstrap = build(trio(), bootstrap=99, journal=None)
    assert batches == take(bootstrap, 30)
    assert tallied(first)["data_outages"] == 3
    assert [(event, details["source"], details["reason"]) for event, details in told] == [
        ("source_absent", details["source"], "no route") for _, details in told
    ]
    assert sorted(details["source"] for _, details in told) == ["blue", "green", "red"], "one line for each"


def test_the_first_batch_waits_for_nothing_while_there_are_bootstrap_batches(build):
    slow = Slow()
    stream = build([slow], shares=(1.0,), bootstrap=3, length=200, limits=Limits(10.0, 10.0))
    began = time.monotonic()
    batches = take(stream, 3)
    assert time.monotonic() - began < 1.0
    assert not [name for batch in batches for name, _ in batch["records"] if name == "slow"]
    slow.go.set()
    records = [name for batch in take(stream, 20) for name, _ in batch["records"]]
    assert "slow" in records


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hanging_source_costs_one_deadline_and_then_nothing(build, tmp_path, workers):
    slow = Slow()
    stream = build([slow, Memory("green")], shares=(0.5, 0.5), workers=workers)
    waits = []
    for _ in range(25):
        began = time.monotonic()
        take(stream, 1)
        waits.append(time.monotonic() - began)
    assert max(waits) < QUICK.deadline_s + 0.3
    assert sum(wait > QUICK.deadline_s * 0.8 for wait in waits) == 1
    assert [(row["source"], row["reason"]) for row in journal(tmp_path, "down")] == [
        ("slow", "no document within 0.3 s")
    ]
    slow.go.set()
    time.sleep(0.1)
    assert "slow" in [name for batch in take(stream, 12) for name, _ in batch["records"]]
    assert {row["source"] for row in journal(tmp_path, "up")} == {"slow"}


def test_a_slow_source_that_stalls_again_and_again_may_wait_once_in_a_while_only(build):
    """It gives three documents and hangs, and so on: each time it would cost a deadline."""
    slow = Slow()
    stream = build([slow], shares=(1.0,))
    began = time.monotonic()
    for _ in range(6):
        take(stream, 9)
        slow.go.set()
        time.sleep(0.03)
        take(stream, 9)
        slow.go.clear()
    assert tallied(stream)["data_outages"] >= 2
    assert time.monotonic() - began < 2 * QUICK.deadline_s + 1.5
    slow.go.set()


class Dull(NoSpam):
    def examine(self, record):
        time.sleep(0.002)
        return Verdict("dull")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_of_which_nothing_is_kept_costs_a_deadline_once_in_a_while(build, workers):
    stream = build([Memory("red")], shares=(1.0,), gate=Dull(), workers=workers)
    began = time.monotonic()
    take(stream, 40)
    assert time.monotonic() - began < 3 * QUICK.deadline_s + 1.0
    assert tallied(stream)["data_substitutions"] > 5


def test_several_sources_that_hang_share_one_deadline(build):
    stream = build([Slow("red"), Slow("green"), Slow("blue")])
    began = time.monotonic()
    take(stream, 1)
    assert time.monotonic() - began < QUICK.deadline_s + 0.3


def test_others_take_over_by_share_and_what_was_missed_is_not_caught_up(build):
    memories = [Memory(name, files=40) for name in ("red", "green", "blue")]
    stream = build(memories, length=200, dedup_window=0)
    memories[0].dead = True
    take(stream, 60)
    counts = tallied(stream)
    assert counts["data_tokens_green"] > 1.3 * counts["data_tokens_blue"]
    assert counts["data_tokens_red"] < 0.05 * counts["data_tokens_green"]
    before = counts["data_tokens_red"]
    memories[0].dead = False
    time.sleep(0.1)
    take(stream, 60)
    after = tallied(stream)
    share = (after["data_tokens_red"] - before) / (60 * 400)
    assert share == pytest.approx(0.7 * 0.5, abs=0.06)


def test_on_resume_a_source_that_had_answered_is_waited_for(build):
    memories = trio()
    first = build(memories, journal=None)
    first.close()
    first = build(memories)
    take(first, 4)
    held = snapshot(first)
    whole = take(first, 12)
    first.close()
    dead = trio()
    for memory in dead:
        memory.dead = True
    timer = threading.Timer(1.0, lambda: [setattr(memory, "dead", False) for memory in dead])
    timer.start()
    second = go_to(build(dead), held)
    assert take(second, 12) == whole
    assert tallied(second)["data_divergences"] == tallied(second)["data_outages"] == 0


def test_a_source_that_stays_away_on_resume_is_a_divergence_aloud(build, tmp_path):
    first = build(trio())
    whole = take(first, 12)
    first.close()
    dead = trio()
    dead[0].dead = True
    second = build(dead, limits=Limits(0.2, 0.5))
    told = listen(second)
    other = take(second, 12)
    assert other != whole
    assert [(row["source"], row["reason"]) for row in journal(tmp_path, "divergence")] == [("red", "no route")]
    assert [details for event, details in told if event == "data_divergence"] == [
        {"source": "red", "reason": "no route"}
    ]
    assert tallied(second)["data_divergences"] == 1
    second.close()
    third = build(trio())
    assert take(third, 12) == other, "the second start is repeated, not the first"
    assert tallied(third)["data_divergences"] == 0


def test_a_file_that_changed_is_a_divergence_aloud(build, tmp_path):
    first = build([Memory("red")], shares=(1.0,))
    take(first, 12)
    first.close()
    other = Memory("red")
    other.record = lambda file, position, i: Memory.record(other, file, position, (i + 1) % 4)
    second = build([other], shares=(1.0,))
    take(second, 12)
    assert tallied(second)["data_divergences"] == 1
    assert "has other tokens" in journal(tmp_path, "divergence")[0]["reason"]


def test_a_damaged_block_is_written_down_and_stays_out_on_resume_even_if_it_is_well_again(build, tmp_path):
    rotten = trio()
    rotten[0].rotten = {(1, 1), (2, 0), (3, 2)}
    first = build(rotten)
    whole = take(first, 40)
    lines = journal(tmp_path, "damaged")
    assert {(row["source"], row["file"], row["position"]) for row in lines} >= {
        ("red", "f1", 1), ("red", "f2", 0), ("red", "f3", 2),
    }  # fmt: skip
    assert tallied(first)["data_dropped_damaged"] == len(lines)
    first.close()
    second = build(trio())
    assert take(second, 40) == whole
    assert tallied(second) == tallied(first)


def after_a_start(build, **settings):
    """The second start of a run, all of whose sources have died since the first."""
    first = build(trio())
    take(first, 3)
    first.close()
    dead = trio()
    for memory in dead:
        memory.dead = True
    return build(dead, **settings)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_stop_request_ends_a_long_wait(build, prefetch):
    second = after_a_start(build, prefetch=prefetch, limits=Limits(0.2, 60.0))
    began = time.monotonic()
    listen(second, lambda: time.monotonic() - began > 0.5)
    with pytest.raises(StopWaitingError):
        take(second, 3)
    second.close()
    assert time.monotonic() - began < 3


def test_a_long_wait_says_what_it_waits_for(build, monkeypatch):
    monkeypatch.setattr("sigma.data.outages.TELL_AFTER_S", 0.05)
    second = after_a_start(build, limits=Limits(0.2, 0.4), prefetch=1)
    told = listen(second)
    take(second, 3)
    assert told[0][0] == "source_awaited"
    assert told[0][1]["at_most_s"] == 0.4
