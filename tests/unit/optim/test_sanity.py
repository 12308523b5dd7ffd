"""What every optimizer must do on problems whose answer is known."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.optim.build import OptimizerSet, build_optimizers
from tests.unit.optim.conftest import Make, step, values
from tests.unit.optim.no_wait import NoWait

FAMILY = ["muon", "normuon", "adamuon"]
MATRIX = [*FAMILY, "soapmuon", "gnprox"]
WAYS = [
    {},
    {"muon_block_period": 2, "muon_block_rows": 4},
    {"muon_interval": 3, "muon_interval_warmup": 0},
    {"teon_layers": 2},
    {"cautious_weight_decay": True, "momentum_dtype": "int8", "weight_dtype": "bf16_residual"},
]
VARIANTS = [{"optimizer": name, **way} for name in FAMILY for way in WAYS] + [
    {"optimizer": "soapmuon", "soap_interval": 2},
    {"optimizer": "gnprox", "gn_mode": "newton"},
    {"optimizer": "c3o", "c3o_credit_enabled": True, "c3o_probe_interval": 2},
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one(shape: tuple[int, ...], role: Any = "hidden", lr: float = 0.02, decay: float = 0.0, **flags: Any) -> Any:
    """(a parameter of zeros, its optimizers)."""
    parameter = Parameter(torch.zeros(*shape))
    name = flags.pop("optimizer", "muon")
    train = TrainSection(lr=lr, adam_lr=lr, weight_decay=decay, optimizer=name)
    return parameter, build_optimizers(
        {"w": parameter}, {"w": role}, train, OptimSection(**flags), CurvatureSection(), C3OSection()
    )


def descend(parameter: Parameter, optimizers: OptimizerSet, loss, steps: int) -> list[float]:
    losses = []
    for number in range(steps):
        optimizers.set_scale(1 - number / steps)
        value = loss(parameter)
        losses.append(value.item())
        value.backward()
        optimizers.step(torch.tensor(0.0))
        optimizers.zero_grad()
    return losses


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_a_step_never_waits_for_the_device(make: Make, flags: dict[str, Any]) -> None:
    optimizers = make(**flags)
    step(optimizers, 1)
    for p in optimizers.parameters.values():
        p.grad = torch.ones_like(p)
    assert optimizers.matrix is not None
    optimizers.matrix.found_inf = torch.tensor(0.0)
    with NoWait():
        optimizers.matrix.set_scale(0.5)
        optimizers.matrix.step()
        optimizers.matrix.step()
        optimizers.matrix.metrics()


def test_the_guard_against_waiting_catches_a_wait() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoWait():
        torch.ones(()).item()


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_two_runs_have_the_same_bits(make: Make, flags: dict[str, Any]) -> None:
    results = []
    for _ in range(2):
        optimizers = make(**flags)
        for seed in range(1, 5):
            step(optimizers, seed)
        results.append(values(optimizers))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_a_stop_in_the_middle_of_every_way_continues_bit_for_bit(make: Make, flags: dict[str, Any]) -> None:
    whole, second = make(**flags), make(**flags, seed=9)
    for seed in (1, 2):
        step(whole, seed)
    for name, p in second.parameters.items():
        p.data.copy_(whole.parameters[name])
    second.load_tensors({key: t.clone() for key, t in whole.tensors().items()})
    second.load_state_dict(whole.state_dict())
    for seed in (3, 4, 5, 6):
        step(whole, seed)
        step(second, seed)
    mine, theirs = values(whole), values(second)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("optimizer", MATRIX)
def test_a_matrix_of_zeros_leaves_zero_in_one_step(optimizer: str) -> None:
    parameter, optimizers = one((12, 20), optimizer=optimizer, decay=0.1)
    parameter.grad = draw(12, 20)
    optimizers.step(torch.tensor(0.0))
    assert parameter.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.02, rel=0.15)


@pytest.mark.parametrize("optimizer", MATRIX)
def test_an_expert_without_tokens_stays_and_comes_back_with_a_step_of_normal_size(optimizer: str) -> None:
    parameter, optimizers = one((3, 12, 20), "experts", optimizer=optimizer, decay=0.1)
    for seed in range(3):
        parameter.grad = draw(3, 12, 20, seed=seed)
        optimizers.step(torch.tensor(0.0))
    for seed in range(3, 40):
        before = parameter.detach().clone()
        parameter.grad = draw(3, 12, 20, seed=seed)
        parameter.grad[1] = 0
        optimizers.step(torch.tensor(0.0))
        assert torch.equal(parameter[1], before[1])
        assert not torch.equal(parameter[0], before[0])
    before, grad = parameter.detach().clone(), draw(3, 12, 20, seed=99)
    parameter.grad = grad.clone()
    optimizers.step(torch.tensor(0.0))
    moved = parameter.detach()[1] - before[1]
    assert moved.square().mean().sqrt().item() <= 0.2 * 0.02 * 1.3 + 0.02 * 0.1
    assert (moved * grad[1]).sum() < 0, "the old momentum has decayed: the new gradient decides"


@pytest.mark.parametrize("optimizer", ["adamw", *MATRIX])
def test_a_badly_scaled_matrix_quadratic_goes_down(optimizer: str) -> None:
    """tr((W - W*)^T B (W - W*) A) / 2 with condition 100 on each side."""
    left, right, target = torch.logspace(-1, 1, 12), torch.logspace(-1, 1, 8), draw(12, 8)

    def loss(w: Tensor) -> Tensor:
        return 0.5 * (left[:, None] * right * (w - target) ** 2).sum()

    parameter, optimizers = one((12, 8), optimizer=optimizer, lr=0.1)
    losses = descend(parameter, optimizers, loss, 300)
    assert losses[-1] < 5e-3 * losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", *MATRIX])
def test_rosenbrock_in_twenty_dimensions_does_not_diverge(optimizer: str) -> None:
    def loss(w: Tensor) -> Tensor:
        x = w.flatten()
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    parameter, optimizers = one((4, 5), optimizer=optimizer, lr=0.03)
    losses = descend(parameter, optimizers, loss, 400)
    assert all(value == value for value in losses)
    assert max(losses[50:]) <= losses[0] * 20
    assert losses[-1] < losses[0]


def test_adamw_is_torchs_adamw_bit_for_bit() -> None:
    parameter, optimizers = one((6, 5), optimizer="adamw", decay=0.1)
    other = Parameter(torch.zeros(6, 5))
    reference = torch.optim.AdamW([other], lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
    for seed in range(200):
        parameter.grad, other.grad = draw(6, 5, seed=seed), draw(6, 5, seed=seed)
        optimizers.step(torch.tensor(0.0))
        reference.step()
    assert torch.equal(parameter, other)


def test_bf16_weights_with_a_residual_follow_fp32_over_many_steps() -> None:
    """200 steps of muon: the weights in 24 bits drift by less than a thousandth of the way that they went."""
    results = {}
    for kind in ("fp32", "bf16_residual"):
        parameter, optimizers = one((16, 24), weight_dtype=kind, lr=1e-3)
        for seed in range(200):
            parameter.grad = draw(16, 24, seed=seed).to(parameter.dtype)
            if kind == "fp32":
                parameter.grad = parameter.grad.bfloat16().float()
            optimizers.step(torch.tensor(0.0))
        assert optimizers.matrix is not None
        results[kind] = optimizers.matrix.master_weights(optimizers.matrix.batches[0])
    assert (results["fp32"] - results["bf16_residual"]).norm() < 1e-3 * results["fp32"].norm()


def test_fewer_bits_take_less_memory() -> None:
    held = {}
    for flags in ({}, {"momentum_dtype": "int8", "weight_dtype": "bf16_residual"}):
        parameter, optimizers = one((64, 128), **flags)
        parameter.grad = draw(64, 128).to(parameter.dtype)
        optimizers.step(torch.tensor(0.0))
        state = sum(t.numel() * t.element_size() for t in optimizers.tensors().values())
        held[len(flags)] = (parameter.element_size() * parameter.numel() + state) / parameter.numel()
    assert held[0] == 8.0
    assert held[2] == pytest.approx(2 + 1 + 1 + 4 / 2048)
