"""The int32 phase is exact, associative and differentiable; the rotation turns the right pairs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from sigma_kernels.scan.packing import Packing
from sigma_kernels.scan.phase import TURN, accumulate_phase, advance_phase, rotate, wrap_turns


def random_turns(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    return ((torch.rand(*shape, generator=g, dtype=torch.float64) - 0.3) * 0.2).to(dtype)


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Between two angles, around the circle."""
    return torch.remainder(a - b + math.pi, 2 * math.pi).sub(math.pi).abs()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_phase_after_65536_steps_is_within_a_millionth_radian_of_the_float64_sum(dtype):
    turns = random_turns(1, 65536, 2, 3, dtype=dtype)
    angle, _ = accumulate_phase(turns)
    exact = 2 * math.pi * turns.double().cumsum(1)
    assert exact.abs().max() > 6000  # hundreds of whole turns, where a sum in fp32 has lost the digits
    assert distance(angle.double(), exact).max() < 1e-6
    assert angle.dtype == dtype


def test_phase_is_the_same_bit_for_bit_however_the_steps_are_split():
    turns = random_turns(2, 101, 3, 4, dtype=torch.float32)
    _, whole = accumulate_phase(turns)
    phase, parts = None, []
    for part in turns.split([1, 36, 64], 1):
        _, part_phase = accumulate_phase(part, initial_BHS=phase)
        parts.append(part_phase)
        phase = part_phase[:, -1]
    stepped = torch.zeros_like(whole[:, 0])
    for t in range(101):
        stepped = advance_phase(stepped, turns[:, t])
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(stepped, whole[:, -1])


def test_wrap_is_modulo_one_turn_at_the_borders():
    half = TURN // 2
    counts = torch.tensor([0, half - 1, half, TURN, -half, -half - 1, 3 * TURN + 5, -3 * TURN - 5])
    wrapped = wrap_turns(counts)
    assert wrapped.dtype == torch.int32
    assert wrapped.tolist() == [0, half - 1, -half, 0, -half, half - 1, 5, -5]


@pytest.mark.parametrize("bounds", [None, [0, 1, 1, 8, 11]], ids=["one row", "packed"])
def test_phase_gradient_is_that_of_the_real_sum(bounds):
    turns = random_turns(1, 11, 2, 3).requires_grad_()
    weight = torch.randn(1, 11, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    packing = None if bounds is None else Packing.of(torch.tensor(bounds, dtype=torch.int32), 11)
    packed = {} if packing is None else {"first_T": packing.first_T, "last_T": packing.last_T}
    angle, _ = accumulate_phase(turns, **packed)
    spans = [0, 11] if bounds is None else bounds
    exact = 2 * math.pi * torch.cat([turns[:, a:b].cumsum(1) for a, b in pairwise(spans)], 1)
    assert distance(angle, exact).max() < 11 * math.pi / 2**32  # half a unit of 2**-32 turn for each step
    (got,), (want,) = (torch.autograd.grad(v, turns, weight) for v in (angle, exact))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_rotation_turns_half_split_pairs_and_leaves_the_rest():
    u = torch.arange(1.0, 9.0, dtype=torch.float64)
    turned = rotate(u, torch.tensor([math.pi / 2, math.pi], dtype=torch.float64))
    expected = torch.tensor([-5.0, -2.0, 3.0, 4.0, 1.0, -6.0, 7.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-14)


def test_rotated_product_depends_only_on_the_difference_of_the_phases():
    g = torch.Generator().manual_seed(0)
    q, k, a, b, shift = (torch.randn(n, generator=g, dtype=torch.float64) for n in (8, 8, 4, 4, 4))
    near = rotate(q, a) @ rotate(k, b)
    torch.testing.assert_close(rotate(q, a + shift) @ rotate(k, b + shift), near, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotate(q, a - b) @ k, near, rtol=1e-12, atol=1e-12)


def test_rotation_without_pairs_is_the_identity():
    u = torch.randn(2, 5)  # an odd N has no pairs
    assert torch.equal(rotate(u, torch.zeros(2, 0)), u)


def test_rotation_passes_gradcheck_with_the_angle_broadcast_over_ranks():
    g = torch.Generator().manual_seed(2)
    u = torch.randn(2, 3, 4, 6, generator=g, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(2, 1, 4, 2, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotate, (u, angle))
