"""A pipelined loop that computes something else than the plain one switches pipelines off, for all, and is counted."""

import pytest
import torch

from sigma_kernels import counters, pipelining


@pytest.fixture(autouse=True)
def on():
    pipelining.switch(True)
    yield
    pipelining.switch(True)


def loop(wrong: float):
    """A loop of which the pipelined form is off by `wrong`."""
    return lambda: [torch.ones(3), torch.ones(3) + (wrong if pipelining.stages(3) > 1 else 0.0)]


def test_loops_that_agree_stay_pipelined():
    before = counters.get("pipelining.checked")
    assert pipelining.check({"one": loop(0.0), "two": loop(1e-5)}) == []
    assert pipelining.stages(3) == 3
    assert counters.get("pipelining.checked") == before + 2


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_one_that_differs_switches_off_all_and_is_named_and_counted(wrong):
    before = counters.get("pipelining.differs")
    assert pipelining.check({"sound": loop(0.0), "corrupted": loop(wrong)}) == ["corrupted"]
    assert not pipelining.is_on()
    assert pipelining.stages(3) == 1
    assert counters.get("pipelining.differs") == before + 1


def test_inside_the_block_nothing_is_pipelined():
    with pipelining.switched_off():
        assert pipelining.stages(4) == 1
    assert pipelining.stages(4) == 4
