"""Credit of blocks: the secant optimum, allocation only, shrinkage, trust bounds."""

import math

import pytest
import torch
from torch import Tensor

from sigma.optim.c3o_credit import STATE, Credit, CreditSettings, Probe, neutral, trust_bounds

YES, NO = torch.tensor(1.0), torch.tensor(0.0)
RATE = 0.05


def quadratic_probe(curvature: Tensor, distance: Tensor, rate: Tensor, noise: Tensor | None = None) -> Probe:
    """Blocks with loss k x^2 / 2 at x = distance, after one step of `rate` along u = 1, from a common rate."""
    noise = torch.zeros(2, len(curvature)) if noise is None else noise
    slope = curvature * (distance - rate) + noise[0]
    return Probe(slope, curvature * rate + noise[1], rate, rate / RATE, torch.ones_like(rate))


def free(blocks: int) -> tuple[Tensor, Tensor]:
    return torch.full((blocks,), 1e-3), torch.full((blocks,), 1e3)


def wide(**changes: float) -> CreditSettings:
    return CreditSettings(**({"scale_min": 1e-2, "scale_max": 1e2} | changes))


def test_the_optimum_of_a_quadratic_is_found_whatever_the_step() -> None:
    """The slope before the step, over the curvature: exact for a quadratic, short steps or long."""
    curvature, distance = torch.tensor([1.0, 4.0, 16.0]), torch.tensor([2.0, 2.0, 0.5])
    for rate in (0.1, 1.0, 3.0):
        credit = Credit(3, wide())
        for _ in range(3):
            credit.observe(quadratic_probe(curvature, distance, torch.full((3,), rate)), *free(3), YES)
        assert torch.allclose(credit.optimum() * rate, distance, rtol=1e-4)


def test_scales_go_to_the_ratio_of_the_optima() -> None:
    """T7: curvatures 16 : 1 at the same slope want steps 1 : 16, and the budget stays as it was."""
    curvature, distance = torch.tensor([16.0, 1.0]), torch.tensor([1.0 / 16, 1.0])
    credit = Credit(2, wide())
    for _ in range(200):
        probe = quadratic_probe(curvature, distance, 0.05 * credit.scale())
        credit.observe(probe, *free(2), YES)
    assert float(credit.scale()[0] / credit.scale()[1]) == pytest.approx(1 / 16, rel=0.05)
    assert float(credit.log_scale.sum()) == pytest.approx(0, abs=1e-4)


def test_pure_noise_leaves_the_scales_at_one() -> None:
    """T7: within 2 percent over 300 probes, for every one of 32 blocks."""
    generator = torch.Generator().manual_seed(0)
    credit, extreme = Credit(32, CreditSettings()), 0.0
    zero, rate = torch.zeros(32), torch.full((32,), 0.02)
    for _ in range(300):
        credit.observe(quadratic_probe(zero, zero, rate, torch.randn(2, 32, generator=generator)), *free(32), YES)
        extreme = max(extreme, float(credit.log_scale.abs().max()))
    assert extreme < math.log(1.02)


def test_noise_shrinks_what_the_signal_asks_for() -> None:
    curvature, distance = torch.tensor([16.0, 1.0]), torch.tensor([1.0 / 16, 1.0])
    ratios = []
    for size in (0.0, 1.0, 10.0):
        generator = torch.Generator().manual_seed(0)
        credit = Credit(2, wide())
        for _ in range(200):
            noise = size * torch.randn(2, 2, generator=generator)
            credit.observe(quadratic_probe(curvature, distance, 0.05 * credit.scale(), noise), *free(2), YES)
        ratios.append(float(credit.scale()[1] / credit.scale()[0]))
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] < 1.1


def test_a_common_factor_changes_no_scale() -> None:
    """The schedule owns the global rate: all steps eight times too short is none of credit's business."""
    credit = Credit(3, CreditSettings())
    curvature = torch.tensor([1.0, 2.0, 3.0])
    for _ in range(100):
        credit.observe(quadratic_probe(curvature, torch.ones(3), torch.full((3,), 1 / 8)), *free(3), YES)
    assert torch.allclose(credit.scale(), torch.ones(3), atol=1e-3)


def test_a_common_factor_changes_no_scale_where_blocks_are_known_to_different_degrees() -> None:
    """What all blocks want is the schedule's business, also when it is certain for one of them only."""
    generator = torch.Generator().manual_seed(0)
    credit = Credit(2, CreditSettings())
    for _ in range(200):
        noise = torch.tensor([0.0, 1.0]) * torch.randn(2, 2, generator=generator)
        probe = quadratic_probe(torch.ones(2), torch.full((2,), 4.0), torch.full((2,), RATE), noise)
        credit.observe(probe, *free(2), YES)
    certain, unsure = credit.reliability().tolist()
    assert certain > 0.9
    assert unsure < 0.1
    assert float(credit.log_scale.abs().max()) < 0.15


def test_blocks_without_curvature_get_more_when_their_slope_is_downhill_and_no_more_when_it_is_not() -> None:
    one = torch.ones(2)
    probe = Probe(torch.tensor([1.0, -1.0]), torch.tensor([-1.0, -1.0]), one, one, one)
    credit = Credit(2, CreditSettings(gain=1.0, ema=0.0))
    credit.observe(probe, *free(2), YES)
    assert credit.scale().tolist() == pytest.approx([math.sqrt(2), math.sqrt(0.5)])  # 2 : 1, with the budget kept


def test_a_skipped_step_spoils_no_average() -> None:
    credit = Credit(2, CreditSettings())
    credit.observe(quadratic_probe(torch.ones(2), torch.ones(2), torch.ones(2)), *free(2), YES)
    before = {name: getattr(credit, name).clone() for name in STATE}
    bad = torch.full((2,), float("nan"))
    credit.observe(Probe(bad, bad, bad, bad, torch.ones(2)), *free(2), NO)
    assert all(torch.equal(getattr(credit, name), value) for name, value in before.items())


def test_state_goes_through_json_and_every_entry_matters() -> None:
    def advance(credit: Credit, count: int) -> None:
        generator = torch.Generator().manual_seed(7)
        for _ in range(count):
            noise = 0.1 * torch.randn(2, 2, generator=generator)
            probe = quadratic_probe(torch.tensor([16.0, 1.0]), torch.ones(2), 0.05 * credit.scale(), noise)
            credit.observe(probe, *free(2), YES)

    first = Credit(2, CreditSettings())
    advance(first, 20)
    saved = first.state_dict()
    second = Credit(2, CreditSettings())
    second.load_state_dict(saved)
    assert second.state_dict() == saved
    advance(first, 2)
    for name in STATE:
        changed = Credit(2, CreditSettings())
        changed.load_state_dict(saved | {name: (torch.tensor(saved[name]) * 1.3 + 0.1).tolist()})
        advance(changed, 2)
        same = [torch.equal(changed.log_scale, first.log_scale)]
        same.append(torch.equal(changed.predicted_loss(torch.ones(2)), first.predicted_loss(torch.ones(2))))
        assert not all(same), name


def test_bounds_hold_and_the_budget_too() -> None:
    energy = torch.tensor([1.0, 5.0, 2.0])
    low, high = torch.tensor([-0.1, -2.0, -2.0]), torch.tensor([0.5, 0.5, 0.0])
    found = neutral(torch.tensor([-3.0, 2.0, 1.0]), energy, low, high)
    assert ((found >= low) & (found <= high)).all()
    assert float((energy * found).sum()) == pytest.approx(0, abs=1e-5)


def test_trust_bounds_always_allow_the_base_step() -> None:
    weight = torch.tensor([0.0, 1.0, 1000.0])
    low, high = trust_bounds(weight, torch.full((3,), 2.0), torch.full((3,), 4.0), torch.full((3,), 0.1), 0.15)
    assert (low <= 1).all()
    assert (high >= 1).all()
    assert float(high[0]) == pytest.approx(0.15 * 2.0 / (0.1 * 2.0)), "a zero matrix may move as if it were fresh"
    assert float(high[2]) > 100
    assert float(low[0]) == pytest.approx(0.35)


@pytest.mark.parametrize("change", [{"scale_min": 1.5}, {"scale_max": 0.5}], ids=str)
def test_bounds_that_exclude_one_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="enclose 1"):
        CreditSettings(**change)
