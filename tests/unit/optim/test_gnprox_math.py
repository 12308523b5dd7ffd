"""GNProx: exponent, damped step, operator-norm ball, proximal decay."""

import pytest
import torch

from sigma.optim.gnprox_math import (
    clip_singular_values,
    damped_step,
    noise_exponent,
    quadratic_term,
    sign_of_singular_values,
)

SHAPES = [(5, 5), (7, 3), (3, 7), (1, 4)]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_singular_values(shape: tuple[int, int], values: torch.Tensor) -> torch.Tensor:
    u, _, v = torch.linalg.svd(draw(*shape), full_matrices=False)
    return u @ torch.diag(values) @ v


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sign_of_singular_values_is_the_polar_factor(shape: tuple[int, int]) -> None:
    x = draw(2, *shape)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert torch.allclose(sign_of_singular_values(x), u @ v, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [0.1, 3.0, 100.0], ids=str)
def test_clipping_bounds_every_singular_value_and_keeps_the_small_ones(shape: tuple[int, int], size: float) -> None:
    values = size * torch.linspace(0.05, 1.5, min(shape), dtype=torch.float64)
    clipped = clip_singular_values(with_singular_values(shape, values))
    assert torch.allclose(clipped, with_singular_values(shape, values.clamp(max=1)), atol=2e-3)


def test_zero_stays_zero_everywhere() -> None:
    zero = torch.zeros(2, 3, 4)
    basis = torch.eye(4).expand(2, 4, 4)
    step = damped_step(zero, zero, torch.eye(3), basis, torch.tensor(0.1), torch.tensor(0.75))
    for result in (sign_of_singular_values(zero), clip_singular_values(zero), step):
        assert torch.equal(result, zero)


def test_at_power_one_without_damping_the_step_is_newtons() -> None:
    left, right = draw(3, 3, seed=1), draw(4, 4, seed=2)
    b, a = left @ left.T, right @ right.T
    q_b, q_a = torch.linalg.eigh(b).eigenvectors, torch.linalg.eigh(a).eigenvectors
    curvature = torch.outer((q_b.T @ b @ q_b).diagonal(), (q_a.T @ a @ q_a).diagonal())
    gradient = draw(3, 4, seed=3)
    step = damped_step(gradient, curvature, q_b, q_a, torch.tensor(0.0), torch.tensor(1.0))
    assert torch.allclose(b @ step @ a, gradient, atol=1e-8)
    assert torch.allclose(quadratic_term(step, curvature, q_b, q_a), (step * (b @ step @ a)).sum())


def test_more_damping_turns_the_step_towards_the_gradient() -> None:
    curvature, gradient = draw(3, 4, seed=4).square(), draw(3, 4, seed=5)
    left, right = torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    angles = []
    for damping in (1e-3, 1.0, 1e3):
        step = damped_step(gradient, curvature, left, right, torch.tensor(damping), torch.tensor(1.0))
        angles.append(float(torch.cosine_similarity(step.flatten(), gradient.flatten(), dim=0)))
    assert angles == sorted(angles)
    assert angles[0] < 0.9
    assert angles[-1] > 0.999


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6], ids=str)
def test_the_direction_does_not_depend_on_the_unit_of_the_loss(size: float) -> None:
    curvature, gradient = draw(3, 4, seed=4).square().float(), draw(3, 4, seed=5).float()
    rest = torch.eye(3), torch.eye(4), torch.tensor(0.1), torch.tensor(0.7)
    plain, scaled = damped_step(gradient, curvature, *rest), damped_step(size * gradient, size**2 * curvature, *rest)
    assert torch.allclose(scaled / scaled.norm(), plain / plain.norm(), atol=1e-5)


@pytest.mark.parametrize("snr, power", [(-0.5, 0.5), (0.0, 0.5), (0.5, 0.75), (1.0, 1.0), (2.0, 1.0)], ids=str)
def test_the_exponent_goes_from_whitening_to_newton_with_the_signal(snr: float, power: float) -> None:
    assert float(noise_exponent(torch.tensor(snr), torch.tensor(1.0))) == power
