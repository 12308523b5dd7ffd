"""Replayed steps are eager ones bit for bit; what cannot be replayed is eager, counted, and told."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.optim.blocks import BlockBatch
from sigma.optim.build import OptimizerSet
from sigma.optim.c3o import C3O
from sigma.optim.graphed_step import EAGER, MOST_GRAPHS, REPLAYED
from sigma.optim.matrix import MOMENTUM, Step, Update
from sigma.optim.normuon import NorMuon
from sigma_kernels import counters
from tests.unit.optim.conftest import load_from, make_set, same, values
from tests.unit.optim.fake_graph import graph, graphed_set

PLAIN = NorMuon.__call__
STEPS = 12
SKIPPED, ABSENT = 7, {5: "w", 9: "stack"}
WAYS: list[dict[str, Any]] = [
    {},
    {"muon_block_period": 3, "muon_block_rows": 3},
    {"muon_interval": 3, "muon_interval_warmup": 4},
    {"teon_layers": 2},
    {"cautious_weight_decay": True, "momentum_dtype": "int8", "weight_dtype": "bf16_residual"},
]
VARIANTS = [{"optimizer": name, **way} for name in ("muon", "normuon", "adamuon") for way in WAYS]
CREDIT = {"optimizer": "c3o", "c3o_credit_enabled": True, "c3o_probe_interval": 4}


def take(optimizers: OptimizerSet, number: int, *, clip: bool = True) -> None:
    """Step `number`: its own gradients, rate and clipping; one is skipped, in two a gradient is absent."""
    generator = torch.Generator().manual_seed(number)
    for name, p in optimizers.parameters.items():
        grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = None if ABSENT.get(number) == name else grad
    optimizers.set_scale(0.2 + number / STEPS)
    found_inf = torch.tensor(float(number == SKIPPED))
    optimizers.step(found_inf, torch.tensor(1 / number) if clip else None)
    optimizers.zero_grad()


def everything(optimizers: OptimizerSet) -> dict[str, Tensor]:
    found = values(optimizers) | {name: t.clone() for name, t in optimizers.tensors().items()}
    assert optimizers.matrix is not None
    return found | {"steps": torch.tensor(optimizers.matrix.steps)}


def waiting(self: NorMuon, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
    """NorMuon's direction, after a wait for the device, which no capture allows."""
    averaged_KMN.sum().item()
    return PLAIN(self, batch, averaged_KMN, step)


def counted(optimizers: OptimizerSet, number: int) -> dict[str, int]:
    """What step `number` counts, besides whether it was replayed."""
    before = counters.snapshot()
    take(optimizers, number)
    after = counters.snapshot()
    ways = (EAGER, REPLAYED)
    return {k: n - before.get(k, 0) for k, n in after.items() if k not in ways and n != before.get(k, 0)}


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_replayed_steps_equal_eager_ones_and_count_the_same(monkeypatch: pytest.MonkeyPatch, flags: Any) -> None:
    eager, (replayed, graphs, told) = make_set(**flags), graphed_set(monkeypatch, **flags)
    for number in range(1, STEPS + 1):
        assert counted(replayed, number) == counted(eager, number), number
        assert same(everything(replayed), everything(eager)), number
    assert graphs.replays >= STEPS - 2 * graphs.captures
    assert graphs.captures == (2 if {"muon_block_period", "muon_interval"} & flags.keys() else 1)
    assert told == []


def test_the_ways_are_counted_and_the_reason_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers, graphs, _ = graphed_set(monkeypatch, optimizer="normuon")
    counters.load({})
    assert optimizers.graphed is not None
    assert optimizers.why_no_graph() is None
    take(optimizers, 1)
    assert optimizers.graphed.reason == "the first step of its kind compiles the kernels"
    for number in (2, 3, 4):
        take(optimizers, number)
        assert optimizers.graphed.reason is None
    assert (counters.get(EAGER), counters.get(REPLAYED), graphs.captures) == (1, 3, 1)
    metrics = optimizers.metrics()
    assert (metrics["optim_eager_steps"], metrics["optim_replayed_steps"]) == (1, 3)
    assert metrics["muon_full_orth_updates"] == 4 * 8


def test_a_replay_reads_what_lies_where_it_was_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake is no eager step in disguise: without new tables it would take the gradients of the capture."""
    optimizers, graphs, _ = graphed_set(monkeypatch, optimizer="muon")
    eager = make_set(optimizer="muon")
    for number in (1, 2):
        take(optimizers, number)
        take(eager, number)
    monkeypatch.setattr("sigma.optim.blocks.BlockBatch.write_tables", lambda batch, without: kinds[id(batch)])
    kinds = {}
    assert optimizers.matrix is not None
    for batch in optimizers.matrix.batches:
        types = batch.parts[0].parameter.dtype, batch.parts[0].parameter.dtype
        kinds[id(batch)] = (types, batch.blocks.aligned("gradients"), batch.blocks.aligned("weights"))
    take(optimizers, 3)
    take(eager, 3)
    assert graphs.replays == 2
    assert not same(everything(optimizers), everything(eager))


def test_a_loaded_checkpoint_needs_no_new_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: dict[str, Any] = {"optimizer": "normuon", "momentum_dtype": "int8"}
    eager, (replayed, graphs, _) = make_set(**flags), graphed_set(monkeypatch, **flags, seed=5)
    for number in (1, 2, 3):
        take(eager, number)
        take(replayed, number + 20)
    load_from(replayed, eager)
    for number in (4, 5, 6):
        take(eager, number)
        take(replayed, number)
    assert (graphs.captures, graphs.replays) == (1, 5)
    assert same(everything(replayed), everything(eager))


@pytest.mark.parametrize("what", ["state", "rate"])
def test_tensors_that_moved_are_captured_anew(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    eager, (replayed, graphs, _) = make_set(optimizer="normuon"), graphed_set(monkeypatch, optimizer="normuon")
    assert replayed.matrix is not None
    for number in range(1, 8):
        if number == 4:
            batch = replayed.matrix.batches[0]
            if what == "state":
                batch.state[MOMENTUM] = batch.state[MOMENTUM].clone()
            else:
                batch.lr = batch.lr.clone()
        take(eager, number)
        take(replayed, number)
    assert (graphs.captures, graphs.replays, graphs.settled) == (2, 5, 1)
    assert same(everything(replayed), everything(eager))


def test_a_weight_that_moved_is_found_without_a_new_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed, graphs, _ = graphed_set(monkeypatch, optimizer="muon")
    for number in (1, 2):
        take(replayed, number)
    moved = replayed.parameters["w"].data.clone()
    replayed.parameters["w"].data = moved
    take(replayed, 3)
    assert replayed.matrix is not None
    (batch,) = [b for b in replayed.matrix.batches if any(part.name == "w" for part in b.parts)]
    assert batch.blocks._tables["weights"].written[0] == moved.data_ptr()
    assert graphs.captures == 1


@pytest.mark.parametrize("how", ["error", "wait"])
def test_a_capture_that_fails_is_told_once_and_training_goes_on_eagerly(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    eager, (failing, graphs, told) = make_set(optimizer="normuon"), graphed_set(monkeypatch, optimizer="normuon")
    if how == "error":
        graphs.error = torch.OutOfMemoryError("no memory for the pool\nmore lines")
    else:
        monkeypatch.setattr(NorMuon, "__call__", waiting)
    counters.load({})
    for number in range(1, 6):
        take(eager, number)
    counted = counters.snapshot()
    counters.load({})
    for number in range(1, 6):
        take(failing, number)
    assert counters.snapshot() == counted, "a capture that fails counts nothing"
    assert same(everything(failing), everything(eager))
    assert graphs.captures == 1
    reason = "no memory for the pool" if how == "error" else "operation not permitted when stream is capturing"
    assert told == [f"optim_graph_unused: capturing failed: {reason}"]
    assert failing.why_no_graph() == f"capturing failed: {reason}"


def test_a_step_that_must_not_be_replayed_is_eager_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, (replayed, graphs, told) = make_set(optimizer="muon"), graphed_set(monkeypatch, optimizer="muon")
    for number in range(1, 9):
        graphs.not_now = "the tensors have several types" if number in (4, 6) else None
        take(eager, number)
        take(replayed, number)
    assert told == ["optim_graph_unused: the tensors have several types"]
    assert (graphs.captures, graphs.replays) == (1, 5)
    assert same(everything(replayed), everything(eager))


@pytest.mark.parametrize(
    "flags, reason",
    [
        ({"optimizer": "soapmuon"}, "QR decompositions"),
        ({"optimizer": "gnprox"}, "number of the step"),
        ({"optimizer": "c3o", "c3o_base": "soapmuon"}, "QR decompositions"),
    ],
    ids=lambda given: given.get("c3o_base", given["optimizer"]) if isinstance(given, dict) else "",
)
def test_optimizers_with_statistics_stay_eager(monkeypatch: pytest.MonkeyPatch, flags: Any, reason: str) -> None:
    optimizers, graphs, told = graphed_set(monkeypatch, **flags)
    for number in (1, 2, 3):
        take(optimizers, number)
    assert reason in (optimizers.why_no_graph() or "")
    assert optimizers.graphed is not None
    assert optimizers.graphed.reason == optimizers.why_no_graph()
    assert (graphs.captures, told) == (0, [])


@pytest.mark.parametrize(
    "flags, reason",
    [
        ({}, "the weights are not on a CUDA device"),
        ({"optim_graph": False}, "it is off (--optim-graph switches it on)"),
        ({"optimizer": "adamw"}, "there is no matrix optimizer"),
    ],
    ids=["cpu", "flag", "adamw"],
)
def test_a_run_that_cannot_replay_knows_it_before_the_first_step(flags: Any, reason: str) -> None:
    optimizers = make_set(**flags)
    assert optimizers.why_no_graph() == reason
    before = counters.get(EAGER)
    take(optimizers, 1)
    assert counters.get(EAGER) == before + (optimizers.matrix is not None)


def test_batches_of_an_eighth_of_the_largest_run_beside_it() -> None:
    shapes = {"large": (32, 8), "eighth": (8, 4), "more": (11, 3), "fewest": (2, 2)}
    optimizers = make_set(shapes=shapes, roles=dict.fromkeys(shapes, "hidden"))
    take(optimizers, 1)
    matrix, told = optimizers.matrix, []
    assert matrix is not None
    for p in optimizers.parameters.values():
        p.grad = torch.ones_like(p)

    def run(branches: Sequence[Callable[[], None]]) -> None:
        for branch in branches:
            now = {b.rows: b.weights() for b in matrix.batches}
            branch()
            told.append({b.rows for b in matrix.batches if not torch.equal(b.weights(), now[b.rows])})

    matrix.begin()
    matrix.update(run)
    assert told == [{32, 11}, {8, 2}]


def test_no_more_than_a_few_kinds_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizers, graphs, told = graphed_set(monkeypatch, optimizer="muon")
    assert optimizers.matrix is not None
    kinds = iter(k for k in range(MOST_GRAPHS + 3) for _ in range(2))
    monkeypatch.setattr(type(optimizers.matrix.direction), "phase", lambda self, number: next(kinds))
    for number in range(2 * (MOST_GRAPHS + 3)):
        take(optimizers, number + 1)
    assert graphs.captures == graphs.replays == MOST_GRAPHS
    assert told == [f"optim_graph_unused: there are more than {MOST_GRAPHS} kinds of steps"]


def test_with_and_without_clipping_are_two_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, (replayed, graphs, _) = make_set(optimizer="muon"), graphed_set(monkeypatch, optimizer="muon")
    for number in range(1, 7):
        for optimizers in (eager, replayed):
            take(optimizers, number, clip=number % 2 == 0)
    assert (graphs.captures, graphs.replays) == (2, 4)
    assert same(everything(replayed), everything(eager))


def test_graphs_that_were_let_go_do_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, (replayed, graphs, told) = make_set(optimizer="muon"), graphed_set(monkeypatch, optimizer="muon")
    assert not replayed.release_graphs(), "there was none"
    for number in range(1, 7):
        if number == 4:
            assert replayed.release_graphs()
            assert not replayed.release_graphs()
        take(eager, number)
        take(replayed, number)
    assert (graphs.captures, graphs.replays, graphs.settled) == (1, 2, 1)
    assert told == ["optim_graph_unused: memory ran out"]
    assert same(everything(replayed), everything(eager))


def credit_of(optimizers: OptimizerSet) -> C3O:
    assert optimizers.matrix is not None
    assert isinstance(optimizers.matrix.allocation, C3O)
    return optimizers.matrix.allocation


def test_credit_is_replayed_between_its_measurements_and_acts_from_a_graph_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eager, (replayed, graphs, told) = make_set(**CREDIT), graphed_set(monkeypatch, **CREDIT)
    for number in range(1, 25):
        states = []
        for optimizers in (eager, replayed):
            c3o = credit_of(optimizers)
            if c3o.measures(number):
                c3o.note_bends(torch.linspace(0.1, 0.8, c3o.blocks))
            c3o.active = 9 <= number < 20
            take(optimizers, number)
            if number in (13, 14):
                c3o.note_reduction(torch.tensor(-1.0))
            states.append((c3o.state_dict(), int(c3o.changed)))
        assert states[0] == states[1], number
        assert same(everything(replayed), everything(eager)), number
    assert float(credit_of(eager).guard) < 1, "the guard and the shares played a part"
    assert bool((credit_of(eager).credit.log_scale != 0).any())
    assert (graphs.captures, told) == (2, [])
    assert graphs.replays == 24 - 2 - 6 - 5  # two kinds, six steps that are kept, five that are measured


def test_the_averages_of_credit_stay_where_they_are_when_a_checkpoint_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizers, _, _ = graphed_set(monkeypatch, **CREDIT)
    for number in (1, 2, 3):
        take(optimizers, number)
    c3o = credit_of(optimizers)
    tensors = {"guard": c3o.guard, "rises": c3o.rises, "changed": c3o.changed, **vars(c3o.credit)}
    places = {name: t.data_ptr() for name, t in tensors.items() if isinstance(t, Tensor)}
    state = c3o.state_dict() | {"guard": 0.5}
    c3o.load_state_dict(state)
    assert c3o.state_dict() == state
    now = {"guard": c3o.guard, "rises": c3o.rises, "changed": c3o.changed, **vars(c3o.credit)}
    assert {name: now[name].data_ptr() for name in places} == places


def test_two_sets_of_one_process_do_not_share_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    first, graphs, _ = graphed_set(monkeypatch, optimizer="muon")
    second, others, _ = graph(make_set(optimizer="muon", seed=8))
    for number in (1, 2, 3):
        take(first, number)
        take(second, number)
    assert (graphs.captures, others.captures) == (1, 1)
