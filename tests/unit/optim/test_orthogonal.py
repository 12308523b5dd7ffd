"""Layers together, blocks of rows, seldom: what is orthogonalised, and that each way keeps the size of the step."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.config.optim import OptimSection
from sigma.config.root import RunConfig
from sigma.core.errors import ConfigError
from sigma.optim.blocks import BlockBatch, make_batches
from sigma.optim.matrix import Step
from sigma.optim.orthogonal import TRANSFORM, Orthogonaliser, due, layer_groups
from sigma.optim.routing import Route
from sigma_kernels import counters
from sigma_kernels.orthogonalise.op import orthogonalise

SHAPE = (24, 10)
NAMES = [f"layers.{i}.{kind}" for i in range(5) for kind in ("q", "k")]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(names: list[str], shape: tuple[int, ...] = SHAPE, splits: tuple[int, ...] = ()) -> BlockBatch:
    parameters = {name: Parameter(torch.zeros(*shape)) for name in names}
    routes = [Route(name, shape, "hidden", "matrix", 1e-2, 0.1, splits) for name in names]
    return make_batches(parameters, routes)[0]


def apply(averaged: Tensor, number: int = 1, batch: BlockBatch | None = None, **flags: Any) -> Tensor:
    """The update of `averaged`, dense."""
    batch = batch or batch_of(NAMES[: len(averaged)], tuple(averaged.shape[1:]))
    orthogonal = Orthogonaliser(OptimSection(**flags))
    orthogonal.prepare(batch)
    step = Step(number, None, torch.ones(len(averaged), dtype=torch.int32))
    return orthogonal(batch, averaged, step).dense()


def unit(update: Tensor) -> Tensor:
    """Each matrix at the norm 1."""
    return update / update.norm(dim=(1, 2), keepdim=True)


def rms(update: Tensor) -> float:
    return float(update.square().mean().sqrt())


# ---- TEON ------------------------------------------------------------------------------------------------------------


def test_groups_are_the_same_matrix_of_consecutive_layers() -> None:
    groups = [g.tolist() for g in layer_groups(batch_of(NAMES), 2)]
    names = [[[NAMES[i] for i in group] for group in size] for size in groups]
    assert names == [
        [["layers.0.q", "layers.1.q"], ["layers.2.q", "layers.3.q"],
         ["layers.0.k", "layers.1.k"], ["layers.2.k", "layers.3.k"]],
        [["layers.4.q"], ["layers.4.k"]],
    ]  # fmt: skip


def test_experts_and_parts_of_different_rows_stay_apart() -> None:
    experts = batch_of(["layers.0.up", "layers.1.up"], (3, 4, 5))
    assert [tuple(g.shape) for g in layer_groups(experts, 2)] == [(6, 1)]
    fused = batch_of(["layers.0.in", "layers.1.in"], (8, 5), splits=(4, 4))
    assert layer_groups(fused, 2)[0].tolist() == [[0, 2], [1, 3]]


def test_one_layer_alone_is_muon_bit_for_bit() -> None:
    averaged = draw(10, *SHAPE)
    batch = batch_of(NAMES)
    orthogonal = Orthogonaliser(OptimSection(teon_layers=1))
    orthogonal._groups[id(batch)] = layer_groups(batch, 1)
    assert torch.equal(orthogonal._layers_together(batch, averaged).dense(), apply(averaged))


def test_two_layers_together_are_the_polar_factor_of_the_matrix_with_both_side_by_side() -> None:
    averaged = draw(10, *SHAPE)
    update = apply(averaged, teon_layers=2)
    beside = torch.cat([averaged[0], averaged[2]], dim=1)[None]  # layers.0.q and layers.1.q
    want = orthogonalise(beside)[0].float() * 0.2 * math.sqrt(max(24, 20))
    torch.testing.assert_close(torch.cat([update[0], update[2]], dim=1), want, rtol=0.02, atol=0.02)
    alone = apply(averaged)
    torch.testing.assert_close(update[8], alone[8], rtol=0.02, atol=0.02)  # the last layer has no partner
    assert not torch.allclose(update[0], alone[0], atol=0.05)


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_layers_together_keep_the_root_mean_square(layers: int) -> None:
    assert rms(apply(draw(10, *SHAPE), teon_layers=layers)) == pytest.approx(0.2, rel=0.1)


# ---- blocks of rows --------------------------------------------------------------------------------------------------


def test_between_whole_steps_each_block_of_rows_is_its_own_matrix() -> None:
    averaged = draw(2, *SHAPE)
    whole, plain = (apply(averaged, n, muon_block_period=3, muon_block_rows=10) for n in (1, 2))
    assert torch.equal(whole, apply(averaged))
    assert torch.equal(apply(averaged, 4, muon_block_period=3, muon_block_rows=10), whole)
    for rows in (slice(0, 10), slice(10, 20), slice(20, 24)):
        block = orthogonalise(averaged[:, rows]).float() * 0.2 * math.sqrt(10)
        torch.testing.assert_close(plain[:, rows], block, rtol=0.02, atol=0.02)
    assert not torch.allclose(plain, whole, atol=0.05)


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (64, 8), (20, 20)], ids=str)
def test_blocks_keep_the_root_mean_square(shape: tuple[int, int]) -> None:
    assert rms(apply(draw(2, *shape), 2, muon_block_period=4, muon_block_rows=8)) == pytest.approx(0.2, rel=0.12)


def test_a_matrix_of_one_block_is_always_whole() -> None:
    averaged = draw(2, *SHAPE)
    assert torch.equal(apply(averaged, 2, muon_block_period=4, muon_block_rows=24), apply(averaged))


# ---- a transform used again ------------------------------------------------------------------------------------------


def test_the_interval_grows_from_one_to_its_value() -> None:
    made = [step for step in range(1, 101) if due(step, 4, 60)]
    gaps = [b - a for a, b in itertools.pairwise(made)]
    assert made[0] == 1
    assert gaps[0] == 1
    assert gaps == sorted(gaps)
    assert gaps[-1] == 4
    assert [step for step in range(1, 10) if due(step, 3, 0)] == [1, 3, 6, 9]
    assert all(due(step, 1, 50) for step in range(1, 10))


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (12, 16)], ids=str)
def test_an_old_transform_is_exact_for_the_average_that_made_it_and_near_for_a_later_one(
    shape: tuple[int, int],
) -> None:
    first = draw(3, *shape)
    later = 0.95 * first + 0.05 * draw(3, *shape, seed=1)
    batch = batch_of(NAMES[:3], shape)
    flags = {"muon_interval": 2, "muon_interval_warmup": 0}
    made = apply(first, 1, batch, **flags)
    assert batch.state[TRANSFORM].any()
    again = apply(3.0 * first, 3, batch, **flags)
    assert bool(((unit(again) * unit(made)).sum(dim=(1, 2)) > 0.9999).all())
    used, fresh = apply(later, 3, batch, **flags), apply(later)
    cosine = (used * fresh).sum() / used.norm() / fresh.norm()
    assert 0.9 < cosine < 0.99999
    assert rms(used) == pytest.approx(0.2, rel=0.01)


def test_before_the_first_transform_nothing_moves() -> None:
    assert not bool(apply(draw(2, *SHAPE), 3, muon_interval=2, muon_interval_warmup=0).any())


def test_a_skipped_step_keeps_the_old_transform() -> None:
    batch = batch_of(NAMES[:2])
    orthogonal = Orthogonaliser(OptimSection(muon_interval=2))
    orthogonal.prepare(batch)
    orthogonal(batch, draw(2, *SHAPE), Step(1, torch.tensor(1.0), torch.ones(2, dtype=torch.int32)))
    assert not bool(batch.state[TRANSFORM].any())


# ---- counters and flags ----------------------------------------------------------------------------------------------


def test_each_way_is_counted() -> None:
    counters.load({})
    averaged = draw(2, *SHAPE)
    apply(averaged)
    apply(averaged, 2, muon_block_period=2, muon_block_rows=8)
    apply(averaged, 3, muon_interval=2, muon_interval_warmup=0)
    metrics = Orthogonaliser(OptimSection()).metrics()
    assert metrics == {"muon_full_orth_updates": 2, "muon_block_orth_updates": 2, "muon_fast_updates": 2}


@pytest.mark.parametrize(
    "flags",
    [
        {"muon_block_period": 2, "muon_interval": 2},
        {"muon_block_period": 2, "teon_layers": 2},
        {"muon_interval": 2, "muon_polynomial": "newton_schulz"},
    ],
    ids=str,
)
def test_ways_that_exclude_each_other_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RunConfig(optim=OptimSection(**flags))
