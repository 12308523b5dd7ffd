"""MuonBlocks: torch's Muon on a matrix, and block by block on what torch's Muon refuses."""

import pytest
import torch
from torch.nn import Parameter

from sigma.optim.muon import MuonBlocks, orthogonalise, update_scale

LR, DECAY, MOMENTUM = 0.02, 0.1, 0.95


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_blocks(start: torch.Tensor, splits: tuple[int, ...] = (), steps: int = 4) -> Parameter:
    parameter = Parameter(start.clone())
    optimizer = MuonBlocks([{"params": [parameter], "splits": [splits]}], lr=LR, weight_decay=DECAY)
    for step in range(steps):
        parameter.grad = random_tensor(*start.shape, seed=step + 1)
        optimizer.step()
    return parameter


def run_torch(start: torch.Tensor, part: slice, steps: int = 4, index: int | None = None) -> Parameter:
    """torch.optim.Muon on the rows `part` (of expert `index`) with the gradients that `run_blocks` used."""
    pick = (lambda t: t[part]) if index is None else (lambda t: t[index][part])
    parameter = Parameter(pick(start).clone())
    optimizer = torch.optim.Muon(
        [parameter], lr=LR, weight_decay=DECAY, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(steps):
        parameter.grad = pick(random_tensor(*start.shape, seed=step + 1)).clone()
        optimizer.step()
    return parameter


@pytest.mark.parametrize("shape", [(5, 7), (48, 33), (33, 48), (64, 64)], ids=str)
def test_equals_torch_muon_bit_for_bit_on_a_matrix(shape: tuple[int, int]) -> None:
    start = random_tensor(*shape)
    assert torch.equal(run_blocks(start), run_torch(start, slice(None)))


def test_each_part_of_a_fused_projection_is_its_own_matrix() -> None:
    start = random_tensor(40, 16)
    fused = run_blocks(start, splits=(8, 20, 12))
    for part in (slice(0, 8), slice(8, 28), slice(28, 40)):
        assert torch.equal(fused[part], run_torch(start, part))
    assert not torch.allclose(fused, run_blocks(start))


def test_each_expert_of_a_stack_is_its_own_matrix() -> None:
    start = random_tensor(3, 24, 17)
    stack = run_blocks(start)
    for expert in range(3):
        torch.testing.assert_close(stack[expert], run_torch(start, slice(None), index=expert), rtol=0, atol=1e-3 * LR)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(random_tensor(2, 30, 50)).float())
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_update_has_the_root_mean_square_of_adamw() -> None:
    direction = orthogonalise(random_tensor(96, 32)).float()
    singular_rms = torch.linalg.svdvals(direction).square().mean().sqrt().item()  # 1 if it were exactly orthogonal
    step = direction * update_scale(96, 32)
    assert step.square().mean().sqrt().item() == pytest.approx(0.2 * singular_rms, rel=1e-4)


def test_found_inf_leaves_parameter_and_momentum_as_they_are() -> None:
    parameter = Parameter(random_tensor(6, 4))
    optimizer = MuonBlocks([parameter], lr=LR)
    parameter.grad = random_tensor(6, 4, seed=1)
    optimizer.step()
    before, momentum = parameter.detach().clone(), optimizer.state[parameter]["momentum_buffer"].clone()
    parameter.grad = torch.full((6, 4), torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(parameter, before)
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum)


def test_found_inf_zero_changes_no_bit_of_the_update() -> None:
    start, gradient = random_tensor(6, 4), random_tensor(6, 4, seed=1)
    results = []
    for flag in (None, torch.tensor(0.0)):
        parameter = Parameter(start.clone())
        optimizer = MuonBlocks([parameter], lr=LR)
        optimizer.found_inf = flag
        parameter.grad = gradient.clone()
        optimizer.step()
        results.append(parameter.detach())
    assert torch.equal(*results)


def test_refuses_vectors_and_wrong_splits() -> None:
    with pytest.raises(ValueError, match="matrices"):
        MuonBlocks([Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="do not add up"):
        MuonBlocks([{"params": [Parameter(torch.zeros(4, 2))], "splits": [(1, 2)]}])
