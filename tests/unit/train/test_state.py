"""The state registry and the generators' state."""

import random

import numpy as np
import pytest
import torch

from sigma.core.strict_json import dumps, loads
from sigma.train.state import StateMismatchError, StateRegistry, read_rng, write_rng


def test_items_and_groups_come_back() -> None:
    box = {"step": 3}
    tensors = {"w": torch.ones(2)}
    registry = StateRegistry()
    registry.register("step", lambda: box["step"], lambda value: box.update(step=value))
    registry.register_tensors("model", lambda: tensors, tensors.update)
    registry.write({"step": 7})
    registry.write_tensors({"model": {"w": torch.zeros(2)}})
    assert registry.read() == {"step": 7}
    assert torch.equal(registry.read_tensors()["model"]["w"], torch.zeros(2))
    assert (registry.names(), registry.group_names()) == (["step"], ["model"])


def test_a_name_is_registered_once() -> None:
    registry = StateRegistry()
    registry.register("x", dict, print)
    with pytest.raises(ValueError, match="twice"):
        registry.register_tensors("x", dict, print)


@pytest.mark.parametrize("items", [{}, {"a": 1, "b": 2, "c": 3}], ids=["missing", "unknown"])
def test_other_names_are_refused_before_anything_changes(items: dict) -> None:
    changed = []
    registry = StateRegistry()
    registry.register("a", lambda: 0, changed.append)
    registry.register("b", lambda: 0, changed.append)
    with pytest.raises(StateMismatchError, match="does not fit"):
        registry.write(items)
    assert changed == []


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_generators_continue_after_a_round_trip_through_json() -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    draws()
    state = loads(dumps(read_rng(), nonfinite="error"))
    expected = draws()
    assert draws() != expected
    write_rng(state)
    assert draws() == expected
