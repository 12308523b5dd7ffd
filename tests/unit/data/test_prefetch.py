import itertools
import threading
import time

import pytest

from sigma.core.errors import SigmaError
from sigma.data.prefetch import DataThreadError, Prefetcher


def test_order_is_kept_and_only_depth_results_wait():
    made = itertools.count()
    produced = []

    def produce():
        produced.append(next(made))
        return produced[-1]

    prefetcher = Prefetcher(produce, 3)
    deadline = time.monotonic() + 10
    while len(produced) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)
    assert len(produced) == 4  # three wait, one more is in hand
    assert [prefetcher.get() for _ in range(10)] == list(range(10))
    prefetcher.close()


def test_error_crosses_the_thread_after_the_good_results_with_its_cause():
    def results():
        yield 1
        yield 2
        raise OSError("disk gone")

    prefetcher = Prefetcher(results().__next__, 2)
    assert [prefetcher.get(), prefetcher.get()] == [1, 2]
    for _ in range(2):
        with pytest.raises(DataThreadError, match="OSError: disk gone") as caught:
            prefetcher.get()
        assert isinstance(caught.value, SigmaError)
        assert isinstance(caught.value.__cause__, OSError)
    prefetcher.close()


def test_close_joins_a_thread_that_waits_for_room():
    before = threading.active_count()
    prefetcher = Prefetcher(lambda: 0, 1)
    time.sleep(0.1)
    prefetcher.close()
    prefetcher.close()
    assert threading.active_count() == before


def test_get_after_close_is_an_error_and_no_endless_wait():
    prefetcher = Prefetcher(lambda: 0, 1)
    prefetcher.close()
    while not prefetcher._ready.empty():
        assert prefetcher.get() == 0
    with pytest.raises(DataThreadError, match="has ended"):
        prefetcher.get()
