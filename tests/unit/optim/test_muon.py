"""Muon: torch's bits on a matrix, and block by block on what torch's Muon refuses."""

import pytest
import torch
from torch.nn import Parameter

from sigma.config.optim import OptimSection
from sigma.optim.matrix import MatrixOptimizer, rms_factor
from sigma.optim.muon import Muon
from sigma.optim.routing import Route

LR, DECAY, MOMENTUM = 0.02, 0.1, 0.95
TORCH_LIKE = OptimSection(muon_polynomial="newton_schulz")


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def muon(starts: dict[str, torch.Tensor], optim: OptimSection, **splits: tuple[int, ...]) -> MatrixOptimizer:
    parameters = {name: Parameter(start.clone()) for name, start in starts.items()}
    routes = [
        Route(name, tuple(p.shape), "hidden", "matrix", LR, DECAY, splits.get(name, ()))
        for name, p in parameters.items()
    ]
    optimizer = MatrixOptimizer(parameters, routes, Muon(optim), optim)
    optimizer.parameters = parameters  # pyright: ignore[reportAttributeAccessIssue]
    return optimizer


def run_blocks(start: torch.Tensor, splits: tuple[int, ...] = (), steps: int = 4) -> Parameter:
    optimizer = muon({"w": start}, TORCH_LIKE, w=splits)
    parameter = optimizer.parameters["w"]  # pyright: ignore[reportAttributeAccessIssue]
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


def test_separate_matrices_of_one_shape_get_the_update_of_a_stack_bit_for_bit() -> None:
    start = random_tensor(3, 24, 17)
    apart = muon({str(e): start[e] for e in range(3)}, OptimSection())
    together = muon({"w": start}, OptimSection())
    for seed in (1, 2):
        grad = random_tensor(3, 24, 17, seed=seed)
        together.parameters["w"].grad = grad.clone()  # pyright: ignore[reportAttributeAccessIssue]
        for e in range(3):
            apart.parameters[str(e)].grad = grad[e].clone()  # pyright: ignore[reportAttributeAccessIssue]
        apart.step()
        together.step()
    separate = torch.stack([p.detach() for p in apart.parameters.values()])  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(separate, together.parameters["w"].detach())  # pyright: ignore[reportAttributeAccessIssue]


def test_update_has_the_root_mean_square_of_adamw() -> None:
    before = random_tensor(96, 32)
    optimizer = muon({"w": before}, OptimSection(muon_iterations=9))
    parameter = optimizer.parameters["w"]  # pyright: ignore[reportAttributeAccessIssue]
    parameter.grad = random_tensor(96, 32, seed=1)
    optimizer.batches[0].weight_decay = 0.0
    optimizer.step()
    assert (parameter - before).square().mean().sqrt().item() == pytest.approx(0.2 * LR, rel=0.05)


def test_rms_factor_is_moonlights() -> None:
    assert rms_factor(96, 32) == pytest.approx(0.2 * 96**0.5)


def test_a_parameter_that_is_no_matrix_and_splits_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="contiguous matrix"):
        muon({"w": torch.zeros(3)}, OptimSection())
    with pytest.raises(ValueError, match="do not add up"):
        muon({"w": torch.zeros(4, 2)}, OptimSection(), w=(1, 2))
