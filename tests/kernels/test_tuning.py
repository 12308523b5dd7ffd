"""The search takes what is faster and computes the same, one setting after the other, and leaves nothing in force."""

import pytest
import torch

from sigma_kernels import tuned
from sigma_kernels.tuning import Tunable, search

errors = pytest.importorskip("triton.errors")


class Machine:
    """An op whose time and results follow from its settings."""

    def __init__(self, times, wrong=(), broken=(), error=errors.TritonError):
        self.times, self.wrong, self.broken, self.error = times, wrong, broken, error

    def settings(self):
        found = tuned.settings("op", "key")
        assert found is not None
        return found["warps"], found["stages"]

    def call(self):
        if self.settings() in self.broken:
            raise self.error("out of resources")
        return [torch.full((4,), 1.1 if self.settings() in self.wrong else 1.0), torch.zeros(2)]

    def clock(self, call):
        call()
        warps, stages = self.settings()
        return self.times[warps, stages]

    def tunable(self):
        return Tunable("op", "key", {"warps": 4, "stages": 1}, {"warps": [2, 4, 8], "stages": [1, 2, 3]}, self.call)


TIMES = {(4, 1): 1.0, (2, 1): 1.2, (8, 1): 0.8, (8, 2): 0.7, (8, 3): 0.6}


def found_by(machine, **options):
    lines = []
    found = search(machine.tunable(), machine.clock, lines.append, **options)
    assert tuned.settings("op", "key") is None
    return found, lines


def test_each_setting_is_searched_with_the_winners_before_it():
    found, lines = found_by(Machine(TIMES))
    assert found.settings == {"warps": 8, "stages": 3}
    assert (found.before_ms, found.after_ms) == (1.0, 0.6)
    assert lines[1:] == [
        "  warps 2 in place of 4: 1.200 ms",
        "  warps 8 in place of 4: 0.800 ms, taken",
        "  stages 2 in place of 1: 0.700 ms, taken",
        "  stages 3 in place of 2: 0.600 ms, taken",
    ]


def test_a_choice_that_computes_something_else_never_wins():
    found, lines = found_by(Machine(TIMES, wrong={(8, 3)}))
    assert found.settings == {"warps": 8, "stages": 2}
    assert lines[-1] == "  stages 3 in place of 2: computes something else (relative error 1.0e-01)"


def test_a_choice_of_which_only_one_result_is_no_number_never_wins():
    machine = Machine(TIMES)
    whole = machine.call
    machine.call = lambda: [*whole(), torch.tensor([1.0, float("nan") if machine.settings() == (8, 3) else 1.0])]
    found, lines = found_by(machine)
    assert found.settings == {"warps": 8, "stages": 2}
    assert lines[-1] == "  stages 3 in place of 2: computes something else (relative error nan)"


@pytest.mark.parametrize("error", [errors.TritonError, ValueError, RuntimeError, torch.OutOfMemoryError])
def test_a_choice_that_does_not_run_is_said(error):
    found, lines = found_by(Machine(TIMES | {(4, 2): 1.0, (4, 3): 0.9}, broken={(8, 1)}, error=error))
    assert found.settings == {"warps": 4, "stages": 3}
    assert f"  warps 8 in place of 4: does not run ({error.__name__})" in lines


def test_whatever_wins_is_kept_at_once():
    kept = []
    found_by(Machine(TIMES), keep=kept.append)
    assert kept == [{"warps": 8, "stages": 1}, {"warps": 8, "stages": 2}, {"warps": 8, "stages": 3}]


def test_a_gain_within_the_noise_changes_nothing():
    found, _ = found_by(Machine(dict.fromkeys(TIMES | {(4, 2): 0, (4, 3): 0}, 0.985) | {(4, 1): 1.0}))
    assert found.settings == {"warps": 4, "stages": 1}


def test_the_search_ends_when_its_time_is_over():
    turns = iter([True, False, False, False])
    found, lines = found_by(Machine(TIMES), goes_on=lambda: next(turns))
    assert found.settings == {"warps": 4, "stages": 1}
    assert len(lines) == 2
