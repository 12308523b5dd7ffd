"""OptimizerSet: one step, one schedule, one set of named state tensors."""

from dataclasses import replace

import pytest
import torch
from torch.nn import Parameter

from sigma.config.train import TrainSection
from sigma.core.errors import SigmaError
from sigma.optim.build import OptimizerSet, build_optimizers

TRAIN = TrainSection(steps=10, lr=1e-2, adam_lr=2e-3)
ROLES = {"w": "hidden", "fused": ("fused", (3, 2)), "stack": "experts", "embed": "embedding", "norm": "vector"}
SHAPES = {"w": (4, 3), "fused": (5, 3), "stack": (2, 4, 3), "embed": (7, 3), "norm": (3,)}
GO, SKIP = torch.tensor(0.0), torch.tensor(1.0)


def make(train: TrainSection = TRAIN) -> OptimizerSet:
    generator = torch.Generator().manual_seed(3)
    parameters = {name: Parameter(torch.randn(*shape, generator=generator)) for name, shape in SHAPES.items()}
    return build_optimizers(parameters, ROLES, train)


def step(optimizers: OptimizerSet, seed: int, found_inf: torch.Tensor = GO, value: float | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in optimizers.parameters.values():
        p.grad = torch.randn(p.shape, generator=generator) if value is None else torch.full_like(p, value)
    optimizers.step(found_inf)


def values(optimizers: OptimizerSet) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in optimizers.parameters.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_moves(optimizer: str) -> None:
    optimizers = make(replace(TRAIN, optimizer=optimizer))
    before = values(optimizers)
    step(optimizers, 1)
    assert [name for name, p in optimizers.parameters.items() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_state_in_a_new_object_continues_bit_for_bit(optimizer: str) -> None:
    train = replace(TRAIN, optimizer=optimizer)
    first, second = make(train), make(train)
    for seed in (1, 2):
        step(first, seed)
    for name, p in second.parameters.items():
        p.data.copy_(first.parameters[name])
    second.load_tensors({key: tensor.clone() for key, tensor in first.tensors().items()})
    step(first, 3)
    step(second, 3)
    assert same(values(first), values(second))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_state_tensors_are_named_by_parameter_and_slot_and_each_one_matters(optimizer: str) -> None:
    train = replace(TRAIN, optimizer=optimizer)
    reference = make(train)
    step(reference, 1)
    saved = {key: tensor.clone() for key, tensor in reference.tensors().items()}
    start = values(reference)
    step(reference, 2)
    assert {key.split("|")[0] for key in saved} == set(SHAPES)
    for key in saved:
        changed = make(train)
        for name, p in changed.parameters.items():
            p.data.copy_(start[name])
        changed.load_tensors(saved | {key: saved[key] + 1})
        step(changed, 2)
        assert not same(values(changed), values(reference)), key


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_skipped_step_leaves_weights_and_state(optimizer: str) -> None:
    optimizers = make(replace(TRAIN, optimizer=optimizer))
    step(optimizers, 1)
    weights, state = values(optimizers), {key: t.clone() for key, t in optimizers.tensors().items()}
    step(optimizers, 2, found_inf=SKIP, value=float("nan"))
    assert same(values(optimizers), weights)
    assert same(optimizers.tensors(), state)


def test_scale_reaches_every_group() -> None:
    optimizers = make()
    optimizers.set_scale(0.5)
    rates = {group["lr"] for o in optimizers.optimizers for group in o.param_groups}
    assert rates == {0.5 * TRAIN.lr, 0.5 * TRAIN.adam_lr}


@pytest.mark.parametrize(
    "change", [{"lr": 3e-2}, {"adam_lr": 5e-3}, {"weight_decay": 0.5}, {"optimizer": "adamw"}], ids=str
)
def test_each_option_changes_the_update(change: dict) -> None:
    plain, changed = make(), make(replace(TRAIN, **change))
    step(plain, 1)
    step(changed, 1)
    assert not same(values(plain), values(changed))


def test_weight_decay_spares_vectors_and_embedding() -> None:
    plain, decayed = make(), make(replace(TRAIN, weight_decay=0.5))
    step(plain, 1)
    step(decayed, 1)
    moved = {name for name in SHAPES if not torch.equal(plain.parameters[name], decayed.parameters[name])}
    assert moved == {"w", "fused", "stack"}


def test_state_of_another_optimizer_is_refused() -> None:
    muon = make()
    step(muon, 1)
    with pytest.raises(SigmaError, match="does not belong"):
        make(replace(TRAIN, optimizer="adamw")).load_tensors(muon.tensors())


def test_state_of_another_size_is_refused() -> None:
    optimizers = make()
    step(optimizers, 1)
    with pytest.raises(SigmaError, match="has shape"):
        make().load_tensors(optimizers.tensors() | {"w|momentum_buffer": torch.zeros(2, 2)})
