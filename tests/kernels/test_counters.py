"""Counts that are kept apart: work that is only prepared counts when it is done."""

from threading import Thread

import pytest

from sigma_kernels import counters


def test_what_is_recorded_counts_only_when_it_is_added():
    with counters.recorded() as counts:
        counters.add("test.op", 2)
        counters.add("test.op")
    assert counters.snapshot() == {}
    for _ in range(2):
        counters.add_all(counts)
    assert counters.snapshot() == {"test.op": 6}


def test_other_threads_count_on_while_one_records():
    with counters.recorded() as counts:
        other = Thread(target=counters.add, args=("test.other",))
        other.start()
        other.join()
    assert (dict(counts), counters.snapshot()) == ({}, {"test.other": 1})


def test_an_error_ends_the_recording():
    with pytest.raises(ValueError, match="broken"), counters.recorded():
        raise ValueError("broken")
    counters.add("test.op")
    assert counters.get("test.op") == 1


def test_a_recording_inside_another_gives_nothing_to_it():
    with counters.recorded() as outer:
        with counters.recorded() as inner:
            counters.add("test.op")
        counters.add("test.op", 5)
    assert (dict(outer), dict(inner)) == ({"test.op": 5}, {"test.op": 1})
