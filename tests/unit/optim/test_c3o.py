"""C3O on planted problems: credit measures, predicts, recovers what wrong rates lose, and does nothing otherwise."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.features.c3o_credit import C3OCredit
from sigma.optim.build import OptimizerSet
from sigma.optim.c3o import C3O
from sigma.optim.c3o_audit import AuditLog
from sigma.train.feature import StepState
from tests.unit.optim.conftest import load_from
from tests.unit.optim.planted import GO, RandomShares, Student, credit_of, optimizers_for, train

WRONG = 8.0
LR, STEPS = 1e-2, 600
QUICK = {"c3o_probe_interval": 4, "c3o_credit_gain": 0.2, "c3o_credit_ema_beta": 0.9, "c3o_audit_interval": 8}
CREDIT = {"optimizer": "c3o", "c3o_credit_enabled": True, **QUICK}
MISTUNED = {"lr": LR / WRONG**0.5, "fused_lr_scale": WRONG}


def run(steps: int = STEPS, seed: int = 0, **flags: Any) -> tuple[Student, OptimizerSet, C3OCredit | None]:
    problem = Student(seed)
    optimizers = optimizers_for(problem, **flags)
    feature = credit_of(problem, optimizers, QUICK["c3o_audit_interval"]) if "c3o_credit_enabled" in flags else None
    train(problem, optimizers, steps, feature)
    return problem, optimizers, feature


def allocation(optimizers: OptimizerSet) -> C3O:
    assert optimizers.matrix is not None
    assert isinstance(optimizers.matrix.allocation, C3O)
    return optimizers.matrix.allocation


@pytest.mark.parametrize(
    "seed, placebos",
    [(0, 1), pytest.param(1, 4, marks=pytest.mark.slow), pytest.param(2, 4, marks=pytest.mark.slow)],
    ids=str,
)
def test_credit_recovers_half_of_what_wrong_rates_lose_and_a_placebo_does_not(seed: int, placebos: int) -> None:
    """Half of the blocks learn 8 times too fast against the other half. The bar is half of the loss gap."""
    right = run(seed=seed, optimizer="normuon", lr=LR)[0].excess()
    wrong = run(seed=seed, optimizer="normuon", **MISTUNED)[0].excess()
    assert wrong > 5 * right, "the rates are wrong enough to see it"
    problem = Student(seed)
    optimizers = optimizers_for(problem, **CREDIT, **MISTUNED)
    feature, midway = credit_of(problem, optimizers, QUICK["c3o_audit_interval"]), {}

    def look(step: int) -> None:
        if step == STEPS // 2:
            midway.update(active=allocation(optimizers).active, correlation=feature.audits.correlation)

    train(problem, optimizers, STEPS, feature, each=look)
    recovered, shares = (wrong - problem.excess()) / (wrong - right), allocation(optimizers).credit.log_scale
    assert recovered > 0.5
    assert midway["active"]
    assert midway["correlation"] > 0.5
    assert shares[:3].mean() > 0.2
    assert (shares[3:] < -0.1).all(), "the fast half gave"
    drawn = [placebo_recovers(seed, shares, draw, wrong, right) for draw in range(placebos)]
    assert sum(drawn) / placebos < 0.25


def placebo_recovers(seed: int, shares: Tensor, draw: int, wrong: float, right: float) -> float:
    problem = Student(seed)
    optimizers = optimizers_for(problem, optimizer="normuon", **MISTUNED)
    assert optimizers.matrix is not None
    optimizers.matrix.allocation = RandomShares(shares, draw)
    train(problem, optimizers, STEPS)
    return (wrong - problem.excess()) / (wrong - right)


def test_credit_does_no_harm_where_the_rates_are_right() -> None:
    right = run(optimizer="normuon", lr=LR)[0].excess()
    assert run(**CREDIT, lr=LR)[0].excess() < 1.25 * right + 1e-3


class Noise:
    """A loss that is linear in the weights with a random slope for every batch: there is nothing to learn."""

    def __init__(self) -> None:
        self.parameters = {f"layers.{i}.weight": Parameter(torch.zeros(8, 8)) for i in range(6)}
        self.roles = dict.fromkeys(self.parameters, "hidden")

    def batch(self, seed: int) -> Tensor:
        return torch.randn(6, 8, 8, generator=torch.Generator().manual_seed(seed))

    def loss(self, batch: Tensor, rows: slice = slice(None)) -> Tensor:
        return (torch.stack(list(self.parameters.values())) * batch).sum()


def test_pure_noise_moves_no_share_by_two_percent_and_credit_stays_inactive() -> None:
    """T7."""
    problem, extreme = Noise(), 0.0
    optimizers = optimizers_for(problem, **CREDIT | {"c3o_credit_gain": 0.05, "c3o_credit_ema_beta": 0.95})
    feature = credit_of(problem, optimizers, 8)

    def look(step: int) -> None:
        nonlocal extreme
        extreme = max(extreme, float(allocation(optimizers).credit.log_scale.abs().max()))

    train(problem, optimizers, 600, feature, each=look)
    assert extreme < 0.0198
    assert feature.audits.verdict == "inactive"


class Bowls:
    """Two blocks with the same slope and curvatures 16 : 1: one is 16 times nearer to its minimum."""

    def __init__(self) -> None:
        draw = lambda seed: torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))  # noqa: E731
        self.curvatures = {"steep.weight": 16.0, "flat.weight": 1.0}
        self.parameters = {name: Parameter(draw(1) / k) for name, k in self.curvatures.items()}
        self.roles = dict.fromkeys(self.parameters, "hidden")

    def batch(self, seed: int) -> Tensor:
        return 0.05 * torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(seed))

    def loss(self, batch: Tensor, rows: slice = slice(None)) -> Tensor:
        terms = zip(self.parameters.values(), self.curvatures.values(), batch, strict=True)
        return sum((k * p.square().sum() / 2 + (p * noise).sum() for p, k, noise in terms), torch.zeros(()))


def test_shares_go_to_the_block_whose_minimum_is_far() -> None:
    """T7: the ratio of the shares moves towards 16, as far as the bounds let it."""
    problem = Bowls()
    optimizers = optimizers_for(problem, **CREDIT, lr=4e-3)
    train(problem, optimizers, 118, credit_of(problem, optimizers, 8, blocks=2), decay=0.0)
    c3o = allocation(optimizers)
    steep, flat = c3o.credit.scale().tolist()
    assert flat / steep > 2
    total = (c3o.credit.log_scale * c3o._update_norms().square()).sum()
    assert float(total) == pytest.approx(0, abs=1e-3), "what one gets the other gives"


def test_the_credits_of_all_blocks_add_up_to_the_change_of_the_loss() -> None:
    """T7: within 5 percent. Loss change allocation, over the very batch on which slopes and bends were measured."""
    problem = Student()
    optimizers = optimizers_for(problem, **CREDIT | {"c3o_credit_ema_beta": 0.0}, lr=LR)
    feature, c3o = credit_of(problem, optimizers, 1000), allocation(optimizers)
    feature._probe_rows = slice(None)
    train(problem, optimizers, 5, feature, decay=0.0)
    predicted = float(c3o.predicted(c3o.choose(6, torch.Generator()))[0].sum())
    batch = problem.batch(5)
    # back to before step 5: the probe of step 4 was measured there
    problem = Student()
    optimizers = optimizers_for(problem, **CREDIT, lr=LR)
    train(problem, optimizers, 4, credit_of(problem, optimizers, 1000), decay=0.0)
    with torch.no_grad(), allocation(optimizers).before_probe():
        before = float(problem.loss(batch))
    after = float(problem.loss(batch).detach())
    assert predicted == pytest.approx(before - after, rel=0.05)


@pytest.mark.parametrize("flags", [{}, {"c3o_credit_enabled": True, **QUICK}], ids=["off", "undecided"])
@pytest.mark.parametrize("base", ["normuon", "muon", "soapmuon"])
def test_without_a_verdict_c3o_is_its_base_bit_for_bit(base: str, flags: dict[str, Any]) -> None:
    plain = run(30, optimizer=base, lr=LR)[0]
    shared = run(30, optimizer="c3o", c3o_base=base, lr=LR, **flags)[0]
    for name, parameter in plain.parameters.items():
        assert torch.equal(parameter, shared.parameters[name])


def test_a_step_is_counted_as_effective_only_while_it_differs_from_the_base() -> None:
    problem = Student()
    optimizers = optimizers_for(problem, **CREDIT, **MISTUNED)
    feature, counted = credit_of(problem, optimizers, 8), []
    verdicts = []

    def look(step: int) -> None:
        counted.append(int(allocation(optimizers).changed))
        verdicts.append(allocation(optimizers).active)

    train(problem, optimizers, 120, feature, each=look)
    assert counted == [int(active) for active in verdicts]
    assert 0 < sum(counted) < 120
    assert feature.audits.total == 15 - 1, "the first one finds no credit yet"


def test_audits_that_fail_switch_credit_off() -> None:
    problem = Student()
    optimizers = optimizers_for(problem, **CREDIT, **MISTUNED)
    feature = credit_of(problem, optimizers, 8)
    train(problem, optimizers, 152, feature)
    assert allocation(optimizers).active
    feature.audits.correlations = [-0.5] * 7  # one less than a verdict takes
    feature.on_batch(state_of(problem, 153))
    assert feature.audits.verdict == "inactive"
    assert not allocation(optimizers).active


def test_an_inactive_credit_is_measured_in_one_audit_interval_of_four_and_can_come_back() -> None:
    problem, kept, passes = Student(), set(), []
    optimizers = optimizers_for(problem, **CREDIT, **MISTUNED)
    feature, c3o = credit_of(problem, optimizers, 8), allocation(optimizers)
    train(problem, optimizers, 144, feature)
    feature.audits = AuditLog([-2.0] * 19)  # no correlation brings the mean back
    for name in ("_loss", "_slopes"):
        plain = getattr(feature, name)
        setattr(feature, name, lambda s, plain=plain: passes.append(s.step) or plain(s))
    train(problem, optimizers, 225, feature, first=145, decay=0.0, each=lambda _: kept.add(c3o.probed_at()))
    assert kept == {144, 156, 160, 188, 192, 220, 224}
    assert set(passes) == {157, 161, 189, 193, 221, 225}
    assert feature.audits.total == 3, "the audits of 161, 193 and 225"
    assert not c3o.active
    feature.audits.correlations = [1.0] * 19
    train(problem, optimizers, 233, feature, first=226, decay=0.0)
    assert c3o.active


def test_the_guard_halves_all_steps_after_two_rises_in_a_row_and_lets_go() -> None:
    problem, c3o_flags = Student(), {**CREDIT, "lr": LR}
    optimizers = optimizers_for(problem, **c3o_flags)
    c3o = allocation(optimizers)
    train(problem, optimizers, 2)
    for reduction, guard in ((-1.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (float("nan"), 0.5), (-1.0, 0.5)):
        c3o.note_reduction(torch.tensor(reduction))
        assert float(c3o.guard) == guard
    train(problem, optimizers, 250)
    assert float(c3o.guard) == pytest.approx(0.5**0.5, rel=1e-3)
    train(problem, optimizers, 260)
    assert float(c3o.guard) == 1


def test_taking_a_step_back_gives_the_weights_before_it_and_leaves_no_trace() -> None:
    problem = Student()
    optimizers = optimizers_for(problem, **CREDIT, lr=LR)
    train(problem, optimizers, 3, decay=0.0)
    before = {name: p.detach().clone() for name, p in problem.parameters.items()}
    train_one(problem, optimizers, 4)
    after = {name: p.detach().clone() for name, p in problem.parameters.items()}
    c3o = allocation(optimizers)
    with c3o.before_probe():
        for name, p in problem.parameters.items():
            assert float((p - before[name]).norm() / (after[name] - before[name]).norm()) < 4e-3, "kept in bf16"
    one = c3o.choose(1, torch.Generator().manual_seed(0))[0]
    with c3o.before_probe(one):
        assert [not torch.equal(p, after[name]) for name, p in problem.parameters.items()].count(True) == 1
    assert all(torch.equal(p, after[name]) for name, p in problem.parameters.items())


def train_one(
    problem: Student, optimizers: OptimizerSet, step: int, skip: bool = False, clip: float | None = None
) -> None:
    problem.loss(problem.batch(step)).backward()
    if clip is not None:
        for p in problem.parameters.values():
            assert p.grad is not None
            p.grad *= clip
    optimizers.step(torch.ones(()) if skip else GO, None if clip is None else torch.tensor(clip))
    optimizers.zero_grad()


def train_to_a_probe(
    problem: Student, optimizers: OptimizerSet, first: int, last: int, skipped: int = 0, clip: float | None = None
) -> None:
    """Steps of which the last one measures, with a bend of 1 for every block."""
    for step in range(first, last + 1):
        if step == last:
            allocation(optimizers).note_bends(torch.ones(6))
        train_one(problem, optimizers, step, skip=step == skipped, clip=clip)


def test_slopes_are_those_of_the_loss_however_much_the_gradient_was_clipped() -> None:
    found = []
    for clip in (1.0, 0.25):
        problem = Student()
        optimizers = optimizers_for(problem, **CREDIT, lr=LR)
        train_to_a_probe(problem, optimizers, 1, 5, clip=clip)
        found.append(allocation(optimizers).credit.slope)
    assert torch.allclose(found[0], found[1], rtol=2e-2, atol=1e-4)


def test_blocks_that_took_no_step_take_no_part_in_an_audit() -> None:
    problem = Student()
    optimizers = optimizers_for(problem, **CREDIT, lr=LR)
    feature, c3o = credit_of(problem, optimizers, 8, blocks=6), allocation(optimizers)
    train(problem, optimizers, 16, feature, decay=0.0)
    c3o.batches[0].state["probe"][1:] = 0
    before = feature.audits.total
    feature.on_batch(state_of(problem, 17))
    assert feature.audits.total == before, "one block alone has no rank"


@pytest.mark.parametrize("skipped", [4, 5], ids=["the step that is kept", "the step that measures"])
def test_a_probe_with_a_skipped_step_is_dropped(skipped: int) -> None:
    problem = Student()
    optimizers = optimizers_for(problem, **CREDIT, lr=LR)
    c3o = allocation(optimizers)
    train_to_a_probe(problem, optimizers, 1, 5, skipped=skipped)
    assert float(c3o.credit.mass) == 0
    train_to_a_probe(problem, optimizers, 6, 9)
    assert float(c3o.credit.mass) > 0


@pytest.mark.parametrize("cut", [100, 101, 103], ids=["with a probe kept", "after it was read", "between"])
def test_a_resumed_run_continues_bit_for_bit(cut: int) -> None:
    def steps(problem: Student, optimizers: OptimizerSet, feature: C3OCredit, first: int, last: int) -> None:
        for step in range(first, last + 1):
            s = state_of(problem, step)
            feature.on_batch(s)
            train_one(problem, optimizers, step)
            feature.after_step(s)

    made = []
    for _ in range(2):
        problem = Student()
        optimizers = optimizers_for(problem, **CREDIT, **MISTUNED)
        made.append((problem, optimizers, credit_of(problem, optimizers, 8)))
    (whole, optimizers, feature), (other, others, second) = made
    steps(whole, optimizers, feature, 1, cut)
    load_from(others, optimizers)
    second.load_state_dict(feature.state_dict())
    steps(whole, optimizers, feature, cut + 1, cut + 40)
    steps(other, others, second, cut + 1, cut + 40)
    assert feature.state_dict() == second.state_dict()
    assert allocation(optimizers).active
    assert all(torch.equal(p, other.parameters[name]) for name, p in whole.parameters.items())


def state_of(problem: Student, step: int) -> StepState:
    return StepState(step, problem.batch(step))
