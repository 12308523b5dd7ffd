"""The learning-rate schedule: warmup, stable, decay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma.optim.schedule import learning_rate_scale, phase_lengths


def curve(steps: int, warmup: float, decay: float) -> list[float]:
    return [learning_rate_scale(step, steps, warmup, decay) for step in range(1, steps + 1)]


def test_known_curve() -> None:
    assert curve(10, 0.2, 0.3) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_without_warmup_and_decay_it_is_constant() -> None:
    assert curve(5, 0.0, 0.0) == [1.0] * 5


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_rises_stays_and_falls(steps: int, warmup: float, share: float) -> None:
    decay = share * (1 - warmup)
    values = curve(steps, warmup, decay)
    warm, cool = phase_lengths(steps, warmup, decay)
    assert warm + cool <= steps
    assert all(0 < value <= 1 for value in values)
    assert values[:warm] == sorted(values[:warm])
    assert all(value == 1 for value in values[warm : steps - cool])
    assert values[steps - cool :] == sorted(values[steps - cool :], reverse=True)


@pytest.mark.parametrize("step", [0, 11])
def test_refuses_steps_outside_the_run(step: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        learning_rate_scale(step, 10, 0.1, 0.1)
