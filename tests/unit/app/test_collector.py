"""The collector rests while libraries are imported, and is as it was afterwards."""

import gc
import weakref

import pytest

from sigma_app.collector import no_collections


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.enable()


def test_inside_nothing_is_collected():
    runs = []
    with no_collections():
        gc.callbacks.append(lambda phase, info: runs.append(phase))
        try:
            kept = [[] for _ in range(10 * gc.get_threshold()[0])]
        finally:
            gc.callbacks.pop()
    assert len(kept) == 10 * gc.get_threshold()[0]
    assert runs == []


def test_garbage_of_before_is_not_kept_for_good():
    class Cycle:
        def __init__(self) -> None:
            self.own = self

    cycle = Cycle()
    alive = weakref.ref(cycle)
    del cycle
    with no_collections():
        pass
    assert alive() is None


def test_what_exists_at_the_end_is_left_out_of_later_collections_and_what_comes_later_is_not():
    with no_collections():
        imported = [[]]
    later = [[]]
    tracked = {id(item) for item in gc.get_objects()}
    assert id(imported) not in tracked
    assert id(later) in tracked


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_afterwards_it_runs_if_it_did_before(enabled, fails):
    (gc.enable if enabled else gc.disable)()
    try:
        with no_collections():
            assert not gc.isenabled()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert gc.isenabled() == enabled
