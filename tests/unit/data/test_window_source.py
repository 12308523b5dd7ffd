"""Windows, their source and its thread, over collections in memory."""

from __future__ import annotations

import json
import pickle
import threading
from collections import Counter

import pytest

from sigma.data.background import Pause
from sigma.data.record import Block, Damaged, DataError, FileRef, Missing, Record, Unavailable
from sigma.data.window import Place, WindowSize, read_window
from sigma.data.window_source import MOST_MISSES, WindowSource

SIZE = WindowSize(records=7, blocks=3)
SOON = Pause(first_s=0.01, most_s=0.02)


class Memory:
    """Files of blocks of records; what a test puts into `faults` is raised by the next reads of that block."""

    name = "memory"
    fingerprint = "memory"

    def __init__(self, blocks_per_file=(3, 1, 4, 2), per_block=4):
        self.sizes = blocks_per_file
        self.per_block = per_block
        self.pin = None
        self.faults: dict[tuple[int, int], list[BaseException]] = {}
        self.reads: list[tuple[int, int]] = []

    def pin_to(self, pin):
        self.pin = pin

    def files(self):
        self.pin = self.pin or "pinned"
        return [FileRef(f"f{i}") for i in range(len(self.sizes))]

    def read(self, file, position):
        self.reads.append((file, position))
        if waiting := self.faults.get((file, position)):
            raise waiting.pop(0)
        records = [Record(self.name, f"f{file}#{position}.{i}", f"text {i}") for i in range(self.per_block)]
        after = position + 1 if position + 1 < self.sizes[file] else None
        return Block(records, after, Counter(empty=1), [f"f{file}:{position}"])

    def close(self):
        pass


def source(collection, **options):
    return WindowSource(collection, 5, size=SIZE, pause=SOON, **options)


def take(stream, n):
    """The ids of the next n records; waits through failures."""
    out = []
    while len(out) < n:
        if stream.ready(10):
            out.append(next(stream).id)
    return out


@pytest.fixture
def memory():
    return Memory()


def test_an_epoch_gives_every_record_once_in_an_order_of_its_own(memory):
    stream, n = source(memory), 40
    first, second = take(stream, n), take(stream, n)
    assert (
        sorted(first)
        == sorted(second)
        == sorted({f"f{f}#{b}.{i}" for f, s in enumerate(memory.sizes) for b in range(s) for i in range(4)})
    )
    assert first != second
    stream.close()


def test_records_are_shuffled_within_a_window_and_files_within_an_epoch(memory):
    windows = [read_window(memory, seed, Place(), SIZE) for seed in range(20)]
    assert len({tuple(record.id for record in window.records) for window in windows}) == 20
    assert len({window.records[0].id.split("#")[0] for window in windows}) > 1


def test_a_window_stops_at_each_of_its_limits():
    assert len(read_window(Memory((9,)), 1, Place(), WindowSize(records=5)).records) == 8
    assert len(read_window(Memory((9,)), 1, Place(), WindowSize(characters=24 * 3)).records) == 12
    assert len(read_window(Memory((9,)), 1, Place(), WindowSize(blocks=4)).records) == 16
    assert len(read_window(Memory((2,)), 1, Place(), WindowSize()).records) == 8, "an epoch ends a window"


@pytest.mark.parametrize("stop", range(0, 90, 7))
def test_seek_goes_on_with_the_next_record_bit_for_bit(stop):
    whole = take(source(Memory()), 100)
    first = source(Memory())
    assert take(first, stop) == whole[:stop]
    cursor = json.loads(json.dumps(first.cursor()))
    second = source(Memory())
    second.seek(cursor)
    assert second.cursor() == cursor
    assert take(second, 100 - stop) == whole[stop:]
    twin = source(Memory())
    take(twin, 100)
    assert second.cursor() == twin.cursor(), "counters too"


def test_the_cursor_does_not_depend_on_what_is_read_ahead(memory):
    slow, fast = source(Memory()), source(Memory())
    for _ in range(30):
        next(slow), next(fast)
        fast.ready(1)
        assert slow.cursor() == fast.cursor()


def test_a_pickled_source_goes_on_with_the_same_record(memory):
    stream = source(memory)
    take(stream, 11)
    copy = pickle.loads(pickle.dumps(stream))
    assert take(copy, 30) == take(stream, 30)


def test_a_damaged_block_is_left_out_counted_and_reported_once():
    memory, seen = Memory(), []
    damage = Damaged("f0", 1, "rotten", 2)
    memory.faults[0, 1] = [damage] * 4
    stream = source(memory, on_damage=seen.append)
    ids = take(stream, 36)
    assert sorted(ids) == sorted(set(take(source(Memory()), 40)) - {f"f0#1.{i}" for i in range(4)})
    assert stream.skipped == Counter(empty=9, damaged=1)
    assert seen == [damage]


def test_damage_without_a_way_on_leaves_the_rest_of_the_file():
    memory = Memory()
    memory.faults[2, 1] = [Damaged("f2", 1, "cut off")] * 2
    assert not {"f2#1.0", "f2#2.0", "f2#3.0"} & set(take(source(memory), 28))


def test_a_block_that_is_well_the_second_time_is_kept():
    memory = Memory()
    memory.faults[0, 1] = [Damaged("f0", 1, "lost on the way", 2)]
    stream = source(memory)
    assert take(stream, 40) == take(source(Memory()), 40)
    assert stream.skipped["damaged"] == 0


def rotten():
    """A collection whose block 1 of the first file is damaged."""
    memory = Memory()
    memory.faults[0, 1] = [Damaged("f0", 1, "slow", 2)] * 2
    return memory


def test_a_block_that_was_left_out_stays_out_when_its_window_is_read_again():
    """Whatever a second look would give: the batches before it were made without it."""
    whole, before, stops = take(source(rotten()), 36), source(rotten()), 0
    for stop in range(1, 36):
        take(before, 1)
        if before.cursor()["holes"]:
            after = source(Memory())
            after.seek(before.cursor())
            assert take(after, 2) == (whole + take(source(rotten()), 40)[36:])[stop : stop + 2]
            assert after.skipped["damaged"] == 1
            stops += 1
    assert stops >= 7, "at every record of the window"


def test_a_file_that_stays_missing_is_left_out_after_a_while():
    memory = Memory()
    memory.faults[3, 0] = [Missing("memory", "404")] * MOST_MISSES
    stream = source(memory)
    ids = take(stream, 33)
    assert sorted(ids[:32]) == sorted(i for i in take(source(Memory()), 40) if not i.startswith("f3"))
    assert stream.skipped["damaged"] == 1
    memory.faults[3, 0] = [Missing("memory", "404")] * (MOST_MISSES - 1)
    assert any(i.startswith("f3") for i in take(stream, 40)), "it came back before that"


def test_a_window_that_changed_is_not_mistaken_for_the_old_one():
    first = source(Memory())
    take(first, 3)
    second = source(Memory(per_block=5))
    second.seek(first.cursor())
    with pytest.raises(Unavailable, match="have changed"):
        next(second)


def test_what_is_unavailable_loses_nothing_and_comes_back():
    memory = Memory()
    for block in ((0, 0), (1, 0), (2, 3), (3, 1)):
        memory.faults[block] = [Unavailable("memory", "503")] * 2
    stream = source(memory)
    assert take(stream, 80) == take(source(Memory()), 80)
    assert stream.failure is None


def test_next_raises_unavailable_and_the_cursor_stays(memory):
    memory.faults[0, 0] = memory.faults[1, 0] = memory.faults[2, 0] = memory.faults[3, 0] = [
        Unavailable("m", "gone")
    ] * 50
    stream = WindowSource(memory, 5, size=SIZE, pause=Pause(60, 60))
    before = stream.cursor()
    for _ in range(2):
        with pytest.raises(Unavailable, match="gone"):
            next(stream)
    assert (stream.cursor(), stream.failure) == (before, "gone")
    assert not stream.ready(0)
    stream.close()


def test_next_gives_up_at_the_first_failure_however_short_the_pause(memory):
    memory.files = lambda: (_ for _ in ()).throw(Unavailable("memory", "gone"))
    stream = WindowSource(memory, 5, size=SIZE, pause=Pause(0, 0))
    for _ in range(20):
        with pytest.raises(Unavailable, match="gone"):
            next(stream)
    stream.close()


def test_the_thread_of_a_closed_reader_never_reads_beside_the_next_one(memory, monkeypatch):
    """As when a name lookup hangs, which nothing can break off."""
    monkeypatch.setattr("sigma.data.background.CLOSE_S", 0.01)
    hang, read, inside, most = threading.Event(), memory.read, [], []

    def slow(file, position):
        inside.append(1)
        most.append(len(inside))
        hang.wait(5)
        inside.pop()
        return read(file, position)

    memory.read = slow
    stream = source(memory)
    for _ in range(3):
        assert not stream.ready(0.05)
        stream.close()
    assert not stream.ready(0.05)
    hang.set()
    assert take(stream, 40) == take(source(Memory()), 40)
    assert max(most) == 1


def test_a_server_that_asks_for_patience_gets_it(memory):
    memory.files = lambda: (_ for _ in ()).throw(Unavailable("memory", "429", retry_after_s=0.5))
    stream = source(memory)
    assert not stream.ready(0.3)
    del memory.files
    assert not stream.ready(0.05)
    assert stream.ready(5)


def test_a_hang_never_blocks_who_asks_whether_it_is_ready_nor_close(memory):
    hang = threading.Event()
    memory.files = hang.wait
    stream = source(memory)
    assert not stream.ready(0.05)
    memory.close = hang.set
    stream.close()


def test_other_errors_reach_the_consumer(memory):
    memory.files = lambda: (_ for _ in ()).throw(DataError("the pinned files are gone"))
    stream = source(memory)
    assert stream.ready(5)
    with pytest.raises(DataError, match="pinned files are gone"):
        next(stream)


def test_a_collection_without_any_record_is_unavailable():
    with pytest.raises(Unavailable, match="no record in any of its 2 files"):
        read_window(Memory((1, 2), per_block=0), 1, Place(3, 1), SIZE)


def test_an_epoch_that_ends_without_records_goes_on_in_the_next():
    memory = Memory((1, 1))
    last = int(read_window(memory, 1, Place(0, 1), SIZE).records[0].id[1])
    memory.faults[last, 0] = [Damaged(f"f{last}", 0, "rotten")] * 2
    window = read_window(memory, 1, Place(0, 1), SIZE)
    assert (len(window.damaged), len({record.id for record in window.records}), window.after.epoch) == (1, 8, 2)


def test_the_pin_of_the_cursor_is_read_again(memory):
    stream = source(memory)
    take(stream, 1)
    cursor = stream.cursor()
    assert cursor["pin"] == "pinned"
    other = Memory()
    other.pin = "newer"
    again = source(other)
    again.seek(cursor)
    take(again, 1)
    assert other.pin == "pinned"
