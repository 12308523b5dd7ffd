"""The phase clock: phases add up to the wall time."""

import time

import pytest

from sigma.train.clock import PHASES, HostTimeline, PhaseClock


class FakeTime:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


@pytest.fixture
def clock(fake: FakeTime) -> PhaseClock:
    return PhaseClock(HostTimeline(fake))


def test_each_phase_gets_its_own_time(clock: PhaseClock, fake: FakeTime) -> None:
    with clock("data"):
        fake.now += 2
    with clock("forward"):
        fake.now += 3
    with clock("data"):
        fake.now += 4
    assert clock.read() == dict.fromkeys(PHASES, 0.0) | {"data": 6, "forward": 3}


def test_a_phase_inside_another_interrupts_it(clock: PhaseClock, fake: FakeTime) -> None:
    with clock("eval"):
        fake.now += 1
        with clock("checkpoint"):
            fake.now += 10
        fake.now += 2
    times = clock.read()
    assert (times["eval"], times["checkpoint"]) == (3, 10)


def test_time_outside_every_phase_is_metrics(clock: PhaseClock, fake: FakeTime) -> None:
    fake.now += 5
    assert clock.read()["metrics"] == 5


def test_read_starts_anew_even_inside_a_phase(clock: PhaseClock, fake: FakeTime) -> None:
    with clock("data"):
        fake.now += 1
        assert clock.read()["data"] == 1
        fake.now += 2
    assert clock.read()["data"] == 2


def test_a_phase_ends_when_it_raises(clock: PhaseClock, fake: FakeTime) -> None:
    with pytest.raises(RuntimeError), clock("data"):
        raise RuntimeError
    fake.now += 1
    assert clock.read()["data"] == 0


def test_unknown_phases_are_refused(clock: PhaseClock) -> None:
    with pytest.raises(ValueError, match="unknown phase"), clock("lunch"):
        pass


def test_phases_sum_to_the_wall_time() -> None:
    start = time.perf_counter()
    clock = PhaseClock(HostTimeline())
    for phase in ("data", "forward", "backward", "opt_step"):
        with clock(phase):
            time.sleep(0.01)
        time.sleep(0.005)
    times = clock.read()
    wall = time.perf_counter() - start
    assert sum(times.values()) == pytest.approx(wall, rel=0.02)
    assert min(times[phase] for phase in ("data", "forward", "backward", "opt_step")) >= 0.01
