"""A rehearsed step asks for exactly the kernels of the real one, and leaves nothing behind."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sigma.build import build_trainer, optimizers_of
from sigma.config.parse import parse
from sigma.config.presets import resolve
from sigma.model.layout import cu_seqlens_of
from sigma.optim.build import OptimizerSet
from sigma.train.feature import StepState
from sigma.train.kernel_stamp import KernelStamp
from sigma.train.loop import Trainer
from sigma.train.rehearsal import Few, blank_batch, few_of_each, make_kernels, rehearse_model, rehearse_optimizer
from sigma_kernels import counters, dispatch
from sigma_kernels.ahead import KernelsAhead
from sigma_kernels.orthogonalise.reference import TorchProducts
from tests.e2e.tiny_trainer import LEAN as LEAN_FLAGS
from tests.e2e.tiny_trainer import ShortValidation, build, digest, rows, train_steps, weights
from tests.e2e.tiny_trainer import same as same_values

SHORT = (
    "--device cpu --precision bf16 --data-backend bundled --tokenizer bytes --n-layers 4 --seq-len 64 --batch-size 4"
)
SHORT += " --micro-batch-size 2 --n-routed-experts 2 --moe-top-k 1"
LEAN = "--momentum-dtype int8 --weight-dtype bf16_residual --cautious-weight-decay"
PRESETS = [
    "--preset demo",
    "--preset small",
    *(pytest.param(f"--preset {name}", marks=pytest.mark.slow) for name in ("base", "large")),
    f"--preset demo --optimizer normuon {LEAN}",
    "--preset demo --optimizer gnprox --no-instant-enabled",
    "--preset demo --optimizer c3o --c3o-credit-enabled --muon-interval 4",
]
NAMES = ("adamw", "muon", "normuon", "adamuon", "soapmuon", "c3o", "gnprox")
OPTIMIZERS: list[dict[str, Any]] = [{"optimizer": name} for name in NAMES] + [LEAN_FLAGS]


def take(trainer: Trainer, number: int, batch: Any = None) -> None:
    s = StepState(number, batch or trainer.data.next_batch())
    trainer.features.run("on_batch", s)
    trainer.stepper.train(s, 1.0)
    trainer.features.run("after_step", s)


@contextmanager
def asked_for() -> Iterator[set[tuple[str, str]]]:
    """Name and key (types, divisibility, compile-time arguments, options) of every kernel that is asked for."""
    from triton import knobs

    found: set[tuple[str, str]] = set()

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        found.add((fn.name, key))
        return True

    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = note
        yield found


def both_kinds(batch: Any, packed: slice) -> Any:
    """`batch` with these rows of two documents each, and the others of one."""
    segments_BT = torch.zeros_like(batch.segments_BT)
    segments_BT[packed, batch.segments_BT.size(1) // 3 :] = 1
    return replace(batch, segments_BT=segments_BT)


@pytest.mark.skipif(not dispatch.triton_installed(), reason="Triton is not installed")
@pytest.mark.parametrize("packed", [slice(0, 2), slice(2, 4)], ids=["packed_first", "packed_last"])
@pytest.mark.parametrize("flags", PRESETS)
def test_a_start_compiles_the_kernels_of_its_first_step_and_no_others(tmp_path, monkeypatch, flags, packed):
    from tests.kernels.fake_gpu import fake_gpu

    compiled: set[tuple[str, str]] = set()

    def load(self: KernelsAhead, kernel: Any, specialization: str) -> None:
        compiled.add((kernel.fn.__name__, json.loads(specialization)["key"]))

    monkeypatch.setattr(KernelsAhead, "_load", load)
    monkeypatch.setattr(TorchProducts, "multiply", lambda self, q, x, out=None: torch.empty_like(x))  # minutes of work
    config = resolve(parse([*SHORT.split(), *flags.split(), "--output-dir", str(tmp_path)]).config, None)
    with fake_gpu(tmp_path / "cache"):
        trainer = build_trainer(config)
        with asked_for() as launched:
            take(trainer, 1, both_kinds(trainer.data.next_batch(), packed))
        trainer.close()
    assert compiled == launched
    assert trainer.startup["kernels_ahead"] == len(compiled) > 20
    assert trainer.startup["startup_kernels_s"] > 0


def twin_of(trainer: Trainer, few: Few) -> OptimizerSet:
    model: Any = trainer.model
    return optimizers_of(trainer.config, model, few)


def rehearse(trainer: Trainer) -> None:
    ctx, optimizers = trainer.stepper.context(), trainer.stepper.optimizers
    rehearse_model(ctx, 2, 24)
    if few := few_of_each(optimizers):
        rehearse_optimizer(ctx, twin_of(trainer, few))


def counted_by_a_forward(trainer: Trainer) -> dict[str, int]:
    counters.load({})
    trainer.stepper.context().loss(blank_batch(2, 24, 1), slice(0, 2))
    return counters.snapshot()


@pytest.mark.parametrize("flags", OPTIMIZERS, ids=str)
def test_training_after_a_rehearsal_has_the_bits_of_training_without_one(tmp_path, flags):
    plain, rehearsed = (build(tmp_path / name, **flags) for name in ("plain", "rehearsed"))
    generator, counted, before = torch.get_rng_state(), counters.snapshot(), weights(rehearsed)
    rehearse(rehearsed)
    assert torch.equal(torch.get_rng_state(), generator)
    assert counters.snapshot() == counted
    after = weights(rehearsed)
    assert same_values({name: after[name] for name in before}, before)
    assert all(p.grad is None for p in rehearsed.model.parameters())
    assert rehearsed.stepper.optimizers.tensors() == {}
    assert counted_by_a_forward(rehearsed) == counted_by_a_forward(plain)
    assert train_steps(rehearsed, 3) == train_steps(plain, 3)
    assert same_values(weights(rehearsed), weights(plain))
    for trainer in (plain, rehearsed):
        trainer.close()


CREDIT = {"c3o_credit_enabled": True, "c3o_probe_interval": 2, "c3o_audit_interval": 2}
FEATURES: list[dict[str, Any]] = [
    {"optimizer": "c3o", **CREDIT},
    {"optimizer": "c3o", **CREDIT, "c3o_base": "gnprox", "gn_interval": 2, "instant_enabled": False},
    {"optimizer": "muon", "muon_interval": 3, "muon_interval_warmup": 2},
]


@pytest.mark.parametrize("flags", FEATURES, ids=str)
def test_a_run_that_rehearses_at_both_of_its_starts_ends_in_the_weights_of_one_that_never_does(
    tmp_path, monkeypatch, flags
):
    monkeypatch.setattr("sigma.build.Validation", ShortValidation)
    whole = build(tmp_path / "whole", **flags)
    whole.run()
    for last in (3, 6):
        trainer = build(tmp_path / "halves", **flags)
        rehearse(trainer)
        after_step = trainer._after_step

        def stop_after(s: StepState, trainer: Trainer = trainer, last: int = last, then: Any = after_step) -> None:
            then(s)
            if s.step == last < trainer.steps:
                trainer.stop.request()

        monkeypatch.setattr(trainer, "_after_step", stop_after)
        assert trainer.run().step == last
    assert digest(trainer, 6) == digest(whole, 6)
    assert rows(trainer)[-1]["loss"] == rows(whole)[-1]["loss"]


class Pool:
    """In place of `KernelsAhead`: nothing is compiled."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None: ...

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        yield

    def wait(self) -> int:
        return 38


def test_the_peak_of_memory_that_a_run_reports_is_not_that_of_the_rehearsal(tmp_path, monkeypatch):
    trainer = build(tmp_path)
    stepper: Any = trainer.stepper
    stepper.settings = replace(stepper.settings, device=torch.device("cuda"))
    done: list[Any] = []
    monkeypatch.setattr("sigma.train.rehearsal.KernelsAhead", Pool)
    monkeypatch.setattr("sigma.train.rehearsal.rehearse_model", lambda ctx, rows, length: done.append("model"))
    monkeypatch.setattr("sigma.train.rehearsal.rehearse_optimizer", lambda ctx, twin: done.append(twin))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append(f"reset {device}"))
    made = make_kernels(KernelStamp(tmp_path, {}), stepper, lambda few: stepper.optimizers, 24)
    assert made["kernels_ahead"] == 38
    assert done == ["model", stepper.optimizers, "reset cuda"]
    trainer.close()


def test_few_parameters_stand_for_every_batch_of_matrices(tmp_path):
    trainer = build(tmp_path, n_layers=6)
    optimizers = trainer.stepper.optimizers
    few = few_of_each(optimizers)
    twin = twin_of(trainer, few)
    assert optimizers.matrix is not None
    assert twin.matrix is not None
    kinds = {(b.rows, b.columns, b.peak_lr): min(b.count, 2) for b in optimizers.matrix.batches}
    assert {(b.rows, b.columns, b.peak_lr): min(b.count, 2) for b in twin.matrix.batches} == kinds
    assert len(few) < len([r for r in optimizers.routes if r.owner == "matrix"])
    assert twin.adamw is None
    trainer.close()


def test_the_stack_has_one_layer_of_each_kind_inside_and_all_of_them_afterwards(tmp_path):
    trainer = build(tmp_path, n_layers=6)
    model: Any = trainer.model
    layers, kinds = model.model.layers, model.config.layer_types
    inside: list[Any] = []

    def look() -> None:
        with model.one_layer_of_each_kind():
            inside.extend(model.model.layers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert inside == [layers[kinds.index(kind)] for kind in dict.fromkeys(kinds)]
    assert len(inside) == 2
    assert model.model.layers is layers
    trainer.close()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("injected"), ValueError("injected")], ids=repr)
def test_a_rehearsal_without_memory_ends_early_and_any_other_error_is_raised(tmp_path, error):
    trainer = build(tmp_path)

    def fail(batch: Any, rows: slice) -> torch.Tensor:
        raise error

    ctx = replace(trainer.stepper.context(), loss=fail)
    if isinstance(error, ValueError):
        with pytest.raises(ValueError, match="injected"):
            rehearse_model(ctx, 2, 24)
    else:
        rehearse_model(ctx, 2, 24)
    trainer.close()


def test_a_rehearsal_without_memory_leaves_the_device_what_it_had_taken(tmp_path, monkeypatch):
    trainer = build(tmp_path)
    ctx, losses, alive = trainer.stepper.context(), [], []

    def loss(batch: Any, rows: slice) -> torch.Tensor:
        value = ctx.loss(batch, rows)
        losses.append(weakref.ref(value))
        return value

    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(torch.autograd, "grad", no_memory)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.extend(loss() for loss in losses))
    rehearse_model(replace(ctx, loss=loss), 2, 24)
    assert alive == [None]
    trainer.close()


@pytest.mark.parametrize("documents", [1, 2])
def test_a_blank_batch_is_labelled_and_unpadded(documents):
    batch = blank_batch(2, 3, documents)
    assert cu_seqlens_of(batch.segments_BT).numel() == 2 * documents + 1
    assert batch.labels_BT.min() >= 0
    assert batch.segments_BT.min() >= 0
    assert batch.input_ids_BT.shape == batch.labels_BT.shape == batch.segments_BT.shape == (2, 3)


def test_nothing_is_rehearsed_on_a_cpu(tmp_path: Path):
    trainer = build(tmp_path)
    assert "kernels_ahead" not in trainer.startup
    trainer.close()
