"""Levenberg-Marquardt damping."""

import pytest
import torch

from sigma.optim.damping import SHRINK, Damping


def adapted(actual: float, predicted: float) -> float:
    damping = Damping(0.1, 1e-3, 10.0)
    damping.adapt(torch.tensor(actual), torch.tensor(predicted))
    return float(damping.value)


@pytest.mark.parametrize(
    "actual, predicted, factor",
    [
        (0.9, 1.0, SHRINK),
        (0.5, 1.0, 1.0),
        (0.1, 1.0, 1 / SHRINK),
        (-1.0, 1.0, 1 / SHRINK),
        (-1.0, -1.0, 1 / SHRINK),
        (float("nan"), 1.0, 1 / SHRINK),
        (0.0, 0.0, 1.0),
    ],
    ids=["kept its promise", "half", "little", "the loss rose", "the model saw it rise", "not a number", "no step"],
)
def test_lambda_follows_the_ratio(actual: float, predicted: float, factor: float) -> None:
    assert adapted(actual, predicted) == pytest.approx(0.1 * factor)


def test_lambda_stays_in_its_bounds() -> None:
    damping = Damping(0.1, 0.01, 1.0)
    for _ in range(20):
        damping.adapt(torch.tensor(1.0), torch.tensor(1.0))
    assert float(damping.value) == pytest.approx(0.01)
    for _ in range(20):
        damping.adapt(torch.tensor(-1.0), torch.tensor(1.0))
    assert float(damping.value) == 1.0


def test_a_start_outside_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        Damping(2.0, 0.1, 1.0)
