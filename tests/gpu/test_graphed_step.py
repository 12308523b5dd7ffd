"""The matrix optimizer's step from real CUDA graphs: the bits of eager steps, no wait, memory, failures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.optim.build import OptimizerSet, build_optimizers
from sigma.optim.c3o import C3O
from sigma.optim.graphed_step import EAGER, REPLAYED
from sigma.optim.matrix import MOMENTUM
from sigma.optim.normuon import NorMuon
from sigma.train.clock import HostTimeline, PhaseClock
from sigma.train.feature import StepState
from sigma.train.step import Stepper, StepSettings
from sigma_kernels import counters
from tests.gpu.test_optimizers import LARGER, LARGER_ROLES
from tests.unit.optim.conftest import SHAPES, load_from, make_set, same, steps_that_never_wait, values
from tests.unit.optim.test_graphed_step import waiting
from tests.unit.train.conftest import TinyModel, make_batch

pytestmark = pytest.mark.gpu

STEPS, SKIPPED = 12, 7
ABSENT = {2: {"w"}, 5: {"stack"}, 9: {"w", "same"}}  # in the step that is captured, too
LEAN = {"cautious_weight_decay": True, "momentum_dtype": "int8", "weight_dtype": "bf16_residual"}
VARIANTS: list[dict[str, Any]] = [
    {"optimizer": "normuon"},
    {"optimizer": "muon", "muon_block_period": 3, "muon_block_rows": 16},
    {"optimizer": "muon", "muon_interval": 3, "muon_interval_warmup": 0},
    {"optimizer": "adamuon", "teon_layers": 2},
    {"optimizer": "normuon", **LEAN},
    {"optimizer": "normuon", "shapes": SHAPES},  # addresses that are not aligned
]


@pytest.fixture(autouse=True)
def _two_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches here have about one size: most of them run beside the largest."""
    monkeypatch.setattr("sigma.optim.matrix.BESIDE", 0.8)


def on_gpu(*, graph: bool, **flags: Any) -> OptimizerSet:
    shapes = flags.pop("shapes", LARGER)
    roles = {} if shapes is SHAPES else {"roles": LARGER_ROLES}
    return make_set(device="cuda", shapes=shapes, **roles, optim_graph=graph, **flags)


def take(optimizers: OptimizerSet, number: int) -> None:
    """Step `number`, its gradients in new memory."""
    generator = torch.Generator().manual_seed(number)
    for name, p in optimizers.parameters.items():
        grad = torch.randn(p.shape, generator=generator).to("cuda", p.dtype)
        p.grad = None if name in ABSENT.get(number, ()) else grad
    optimizers.set_scale(0.2 + number / STEPS)
    found_inf = torch.full((), float(number == SKIPPED), device="cuda")
    optimizers.step(found_inf, torch.full((), 1 / number, device="cuda"))
    optimizers.zero_grad()


def everything(optimizers: OptimizerSet) -> dict[str, torch.Tensor]:
    return values(optimizers) | {name: t.clone() for name, t in optimizers.tensors().items()}


def replayed() -> int:
    return counters.get(REPLAYED)


def counted(number: int, optimizers: OptimizerSet) -> dict[str, int]:
    """What a step counts, besides whether it was replayed."""
    before = counters.snapshot()
    take(optimizers, number)
    after = counters.snapshot()
    return {k: n - before.get(k, 0) for k, n in after.items() if n != before.get(k, 0) and k not in (EAGER, REPLAYED)}


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_replayed_steps_have_the_bits_of_eager_ones(flags):
    eager, graphed, told = on_gpu(graph=False, **flags), on_gpu(graph=True, **flags), []
    graphed.listen(lambda event, reason: told.append(reason))
    before = replayed()
    for number in range(1, STEPS + 1):
        assert counted(number, graphed) == counted(number, eager), number
        assert same(everything(graphed), everything(eager)), number
    assert told == []
    assert graphed.graphed is not None
    assert graphed.graphed.reason is None
    assert replayed() - before >= 6


def test_credit_is_replayed_between_its_measurements():
    flags = {"optimizer": "c3o", "c3o_credit_enabled": True, "c3o_probe_interval": 6}
    sets = [on_gpu(graph=graph, **flags) for graph in (False, True)]
    before = replayed()
    for number in range(1, 19):
        states = []
        for optimizers in sets:
            assert optimizers.matrix is not None
            c3o = optimizers.matrix.allocation
            assert isinstance(c3o, C3O)
            if c3o.measures(number):
                c3o.note_bends(torch.linspace(0.1, 0.8, c3o.blocks, device="cuda"))
            c3o.active = number >= 8
            take(optimizers, number)
            states.append((c3o.state_dict(), int(c3o.changed)))
        assert states[0] == states[1], number
        assert same(everything(sets[0]), everything(sets[1])), number
    assert replayed() - before >= 8


def test_a_loaded_checkpoint_needs_no_new_capture():
    eager, graphed = on_gpu(graph=False, optimizer="normuon"), on_gpu(graph=True, optimizer="normuon", seed=5)
    for number in (1, 3, 4):
        take(eager, number)
        take(graphed, number + 20)
    load_from(graphed, eager)
    before = replayed()
    for number in (6, 7, 8):
        take(eager, number)
        take(graphed, number)
    assert replayed() == before + 3
    assert same(everything(graphed), everything(eager))


def test_state_that_moved_is_captured_anew():
    flags = {"optimizer": "muon", "muon_block_period": 2, "muon_block_rows": 16}
    eager, graphed, told = on_gpu(graph=False, **flags), on_gpu(graph=True, **flags), []
    graphed.listen(lambda event, reason: told.append(reason))
    assert graphed.matrix is not None
    before = replayed()
    for number in range(20, 32):
        if number == 26:
            for batch in graphed.matrix.batches:
                batch.state[MOMENTUM] = batch.state[MOMENTUM].clone()
        take(eager, number)
        take(graphed, number)
        assert same(everything(graphed), everything(eager)), number
    assert told == []
    assert replayed() - before == 12 - 4  # two kinds, twice


def test_a_gradient_that_the_kernels_do_not_take_makes_its_step_eager():
    eager, graphed, told = on_gpu(graph=False, optimizer="muon"), on_gpu(graph=True, optimizer="muon"), []
    graphed.listen(lambda event, reason: told.append(reason))
    before = replayed()
    for number in range(1, 7):
        for optimizers in (eager, graphed):
            for name, p in optimizers.parameters.items():
                p.grad = torch.linspace(-1, 1 / number, p.numel(), device="cuda").view(p.shape)
                if name == "w" and number == 4:
                    p.grad = p.grad.T.contiguous().T
            optimizers.step(torch.zeros((), device="cuda"))
    assert told == ["a tensor is not contiguous"]
    assert replayed() == before + 4
    assert same(everything(graphed), everything(eager))


def test_a_replay_never_waits_for_the_device():
    optimizers = on_gpu(graph=True, optimizer="normuon")
    for number in (1, 3):
        take(optimizers, number)
    clip, before = torch.ones((), device="cuda"), replayed()
    steps_that_never_wait(optimizers, clip)
    assert replayed() == before + 3


def test_the_memory_of_the_graphs_is_printed_and_given_back(capsys):
    names = [f"layers.{i}.weight" for i in range(12)]
    shapes, roles = dict.fromkeys(names, (1024, 2048)), dict.fromkeys(names, "hidden")
    optimizers = make_set(device="cuda", shapes=shapes, roles=roles, optimizer="normuon", optim_graph=True)
    reserved = {}

    def look(when: str) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        reserved[when] = torch.cuda.memory_reserved() / 2**20

    for number, when in ((1, "eager"), (3, "captured"), (4, "replayed")):
        take(optimizers, number)
        look(when)
    assert optimizers.release_graphs()
    look("released")
    with capsys.disabled():
        print(f"\n12 matrices of 1024 x 2048 (48 MiB in bf16): MiB reserved {reserved}")
    assert reserved["captured"] > reserved["eager"]
    assert reserved["replayed"] == pytest.approx(reserved["captured"], abs=4), "a replay takes nothing more"
    assert reserved["released"] < reserved["captured"]


def stepper_of(*, graph: bool) -> Stepper:
    model = TinyModel().cuda()
    optimizers = build_optimizers(
        dict(model.named_parameters()), model.parameter_roles(),
        TrainSection(steps=10, lr=1e-2, adam_lr=1e-2, optimizer="normuon"),
        replace(OptimSection(), optim_graph=graph), CurvatureSection(), C3OSection(),
    )  # fmt: skip
    settings = StepSettings(device=torch.device("cuda"), bf16=False, micro_batch=3, grad_clip=0.5)
    return Stepper(
        model, optimizers, settings, PhaseClock(HostTimeline()),
        on_loss=lambda s: None, on_retry=lambda: None, on_event=lambda event, **details: None,
    )  # fmt: skip


def test_the_trainers_step_has_the_same_bits_with_and_without_graphs():
    found = []
    for graph in (False, True):
        stepper, before = stepper_of(graph=graph), replayed()
        for number in range(1, 9):
            stepper.model.poison = number == 5  # pyright: ignore[reportArgumentType] - a field of TinyModel
            stepper.train(StepState(number, make_batch(number)), 0.1 * number)
        assert stepper.state_dict()["skipped_total"] == 1
        assert replayed() - before == (7 if graph else 0)
        found.append(everything(stepper.optimizers))
    assert same(*found)


def test_a_capture_that_fails_is_told_once_and_leaves_the_device_usable(monkeypatch):
    eager, failing, told = on_gpu(graph=False, optimizer="normuon"), on_gpu(graph=True, optimizer="normuon"), []
    failing.listen(lambda event, reason: told.append(reason))
    stream = torch.cuda.current_stream()
    with monkeypatch.context() as patched:
        patched.setattr(NorMuon, "__call__", waiting)
        for number in range(1, 6):
            take(eager, number)
            take(failing, number)
            assert torch.cuda.current_stream() == stream
    assert len(told) == 1
    assert told[0].startswith("capturing failed")
    assert same(everything(failing), everything(eager))
    after, before = on_gpu(graph=True, optimizer="normuon"), replayed()
    for number in range(1, 6):
        take(after, number)
    assert replayed() == before + 3, "another capture works"
    assert same(everything(after), everything(eager))


def test_memory_that_runs_out_in_a_branch_of_a_capture_is_told_as_such_and_leaves_the_device_usable(monkeypatch):
    eager, failing, told = on_gpu(graph=False, optimizer="normuon"), on_gpu(graph=True, optimizer="normuon"), []
    failing.listen(lambda event, reason: told.append(reason))
    plain, seen = NorMuon.__call__, []

    def without_memory(self, batch, averaged_KMN, step):
        if torch.cuda.is_current_stream_capturing():
            seen.append(torch.cuda.current_stream())
            if seen[-1] != seen[0]:
                raise torch.OutOfMemoryError("no memory")
        return plain(self, batch, averaged_KMN, step)

    with monkeypatch.context() as patched:
        patched.setattr(NorMuon, "__call__", without_memory)
        for number in range(1, 6):
            take(eager, number)
            take(failing, number)
    assert told == ["capturing failed: no memory"]
    assert same(everything(failing), everything(eager))
    torch.cuda.empty_cache()  # the allocator is in no capture any more
    after, before = on_gpu(graph=True, optimizer="normuon"), replayed()
    for number in range(1, 6):
        take(after, number)
    assert replayed() == before + 3, "another capture works"
