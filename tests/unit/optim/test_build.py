"""OptimizerSet: one step, one schedule, one set of named state tensors, one routing table."""

from typing import Any

import pytest
import torch

from sigma.core.errors import SigmaError
from sigma.optim.build import CURVED_DIRECTIONS, DIRECTIONS
from tests.unit.optim.conftest import SHAPES, Make, load_from, same, step, values

ALL = ["adamw", "c3o", *DIRECTIONS, *CURVED_DIRECTIONS]
FAMILY = [name for name in DIRECTIONS if name in ("muon", "normuon", "adamuon")]
STORAGE = [
    {},
    {"momentum_dtype": "bf16"},
    {"momentum_dtype": "int8"},
    {"weight_dtype": "bf16_residual"},
    {"momentum_dtype": "int8", "weight_dtype": "bf16_residual"},
]
VARIANTS = [({"optimizer": name}) for name in ALL] + [{"optimizer": "muon", **storage} for storage in STORAGE[1:]]


@pytest.mark.parametrize("optimizer", ALL)
def test_every_parameter_moves(make: Make, optimizer: str) -> None:
    optimizers = make(optimizer=optimizer)
    before = values(optimizers)
    step(optimizers, 1)
    assert [name for name, p in optimizers.parameters.items() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_state_in_a_new_object_continues_bit_for_bit(make: Make, flags: dict[str, Any]) -> None:
    first, second = make(**flags), make(**flags, seed=4)
    for seed in (1, 2, 3):
        step(first, seed)
    load_from(second, first)
    for seed in (4, 5, 6):
        step(first, seed)
        step(second, seed)
    assert same(values(first), values(second))
    assert same(first.tensors(), second.tensors())


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_state_tensors_are_named_by_parameter_and_slot_and_each_one_matters(make: Make, flags: dict[str, Any]) -> None:
    reference = make(**flags)
    step(reference, 1)
    saved = {key: tensor.clone() for key, tensor in reference.tensors().items()}
    start = values(reference)
    step(reference, 2)
    assert {key.split("|")[0] for key in saved} == set(SHAPES)
    for key in saved:
        changed = make(**flags)
        for name, p in changed.parameters.items():
            p.data.copy_(start[name])
        changed.load_tensors(saved | {key: saved[key] + 1})
        step(changed, 2)
        assert not same(values(changed) | changed.tensors(), values(reference) | reference.tensors()), key


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_a_skipped_step_leaves_weights_and_state(make: Make, flags: dict[str, Any]) -> None:
    optimizers = make(**flags)
    step(optimizers, 1)
    weights, state = values(optimizers), {key: t.clone() for key, t in optimizers.tensors().items()}
    step(optimizers, 2, skip=True, value=float("nan"))
    assert same(values(optimizers), weights)
    assert same(optimizers.tensors(), state)


def test_a_skipped_first_step_leaves_weights_and_empty_state(make: Make) -> None:
    optimizers = make()
    weights = values(optimizers)
    step(optimizers, 1, skip=True, value=float("inf"))
    assert same(values(optimizers), weights)
    assert all(not bool(t.any()) for t in optimizers.tensors().values())


def test_scale_reaches_every_parameter(make: Make) -> None:
    optimizers = make()
    before = values(optimizers)
    optimizers.set_scale(0.0)
    step(optimizers, 1)
    assert same(values(optimizers), before)
    optimizers.set_scale(0.5)
    half = make()
    step(half, 1)
    optimizers = make()
    optimizers.set_scale(0.5)
    step(optimizers, 1)
    for name, p in optimizers.parameters.items():
        moved, whole = p - before[name], half.parameters[name] - before[name]
        torch.testing.assert_close(moved, whole / 2, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "flags, moved",
    [
        ({"lr": 3e-2}, {"w", "same", "fused", "stack"}),
        ({"adam_lr": 5e-3}, {"embed", "head", "router", "norm"}),
        ({"weight_decay": 0.5}, {"w", "same", "fused", "stack", "head", "router"}),
        ({"fused_lr_scale": 2.0}, {"fused"}),
        ({"expert_lr_scale": 2.0}, {"stack"}),
        ({"embedding_lr_scale": 2.0}, {"embed"}),
        ({"head_lr_scale": 2.0}, {"head"}),
        ({"router_lr_scale": 2.0}, {"router"}),
        ({"vector_lr_scale": 2.0}, {"norm"}),
        ({"muon_exclude_embeddings": False}, {"embed"}),
        ({"muon_exclude_lm_head": False}, {"head"}),
        ({"muon_exclude_router": False}, {"router"}),
        ({"muon_momentum": 0.5}, {"w", "same", "fused", "stack"}),
        ({"muon_nesterov": False}, {"w", "same", "fused", "stack"}),
        ({"muon_polynomial": "newton_schulz"}, {"w", "same", "fused", "stack"}),
        ({"muon_iterations": 2}, {"w", "same", "fused", "stack"}),
        ({"cautious_weight_decay": True}, {"w", "same", "fused", "stack"}),
        ({"momentum_dtype": "bf16"}, {"w", "same", "fused", "stack"}),
        ({"momentum_dtype": "int8"}, {"w", "same", "fused", "stack"}),
        ({"weight_dtype": "bf16_residual"}, {"w", "same", "fused", "stack"}),
        ({"adam_beta1": 0.5}, {"embed", "head", "router", "norm"}),
        ({"adam_beta2": 0.5}, {"embed", "head", "router", "norm"}),
        ({"adam_eps": 1e-2}, {"embed", "head", "router", "norm"}),
    ],
    ids=lambda flags: next(iter(flags)) if isinstance(flags, dict) else "",
)
def test_each_flag_changes_the_parameters_that_it_is_about(make: Make, flags: dict, moved: set[str]) -> None:
    plain, changed = make(), make(**flags)
    for seed in (1, 2, 3):
        step(plain, seed)
        step(changed, seed)
    found = {n for n in SHAPES if not torch.equal(plain.parameters[n].float(), changed.parameters[n].float())}
    assert found == moved


def test_a_checkpoint_with_another_routing_table_is_refused_by_name(make: Make) -> None:
    stored = make().state_dict()
    with pytest.raises(
        SigmaError, match=r"another routing table: embed was \['adamw', 'embedding'\] and is \['matrix'"
    ):
        make(muon_exclude_embeddings=False).check_state(stored)
    with pytest.raises(SigmaError, match="4 parameters differ"):
        make(optimizer="adamw").check_state(stored)
    make(lr=0.5).check_state(stored)


def test_state_of_another_optimizer_is_refused(make: Make) -> None:
    muon = make()
    step(muon, 1)
    with pytest.raises(SigmaError, match="does not belong"):
        make(optimizer="adamw").load_tensors(muon.tensors())


@pytest.mark.parametrize(
    "change",
    [{"w|momentum_buffer": torch.zeros(2, 2)}, {"w|momentum_buffer": torch.zeros(4, 3, dtype=torch.bfloat16)}],
    ids=["shape", "type"],
)
def test_state_of_another_kind_is_refused(make: Make, change: dict[str, torch.Tensor]) -> None:
    optimizers = make()
    step(optimizers, 1)
    with pytest.raises(SigmaError, match=r"'w\|momentum_buffer' is .* \[4, 3\]; continue"):
        make().load_tensors(optimizers.tensors() | change)


def test_a_missing_state_tensor_is_refused(make: Make) -> None:
    optimizers = make()
    step(optimizers, 1)
    state = {key: tensor for key, tensor in optimizers.tensors().items() if key != "w|momentum_buffer"}
    with pytest.raises(SigmaError, match="is not there"):
        make().load_tensors(state)
