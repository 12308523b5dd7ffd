"""The sequential scan is the recurrence of the paper, and its coefficients stay in their ranges."""

from __future__ import annotations

import math

import pytest
import torch

from sigma_kernels.scan.gate import gate
from sigma_kernels.scan.prepare import DECAY_FLOOR, heavy_tail, prepare
from sigma_kernels.scan.reference import mamba3_scan_reference
from sigma_kernels.scan.state import Mimo
from tests.kernels.scan_cases import Shape, make_case, paper_scan
from tests.kernels.tolerance import assert_close

SHAPES = [Shape(), Shape(R=3, y_norm=True), Shape(S=0, y_norm=True), Shape(S=4, G=1, R=2)]


def rounded(radians: torch.Tensor) -> torch.Tensor:
    """To multiples of 2**-32 turn, with the gradient of the identity."""
    unit = 2 * math.pi / 2**32
    return radians + (torch.round(radians / unit) * unit - radians).detach()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sequential_scan_is_the_rotating_state_of_the_paper_in_values_and_gradients(shape):
    """With the increments rounded to 2**-32 turn in both, nothing is left but the order of the sums: 1e-10."""
    case = make_case(shape)
    leaves = {name: t.requires_grad_() for name, t in case.leaves().items()}
    got = mamba3_scan_reference(**case.inputs, **case.parameters)
    want = paper_scan(case, rounded)
    above = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=want.dtype)
    assert_close("y", got, want)
    grads = [torch.autograd.grad(y, list(leaves.values()), above, materialize_grads=True) for y in (got, want)]
    for name, a, b in zip(leaves, *grads, strict=True):
        assert_close(f"d {name}", a, b)


def test_rounding_of_the_phase_stays_below_a_ten_millionth():
    """Against the unrounded phase: 13 steps of at most 2**-33 turn are 1e-8 radian, seen through values of order 1."""
    case = make_case(Shape(R=2))
    exact = paper_scan(case, lambda radians: radians)
    error = (mamba3_scan_reference(**case.inputs, **case.parameters) - exact).abs().max()
    assert 0 < error < 1e-7


def test_every_decay_lies_between_zero_and_one_for_extreme_inputs():
    case = make_case(Shape(B=1, T=9, H=2, G=1))
    extremes = torch.tensor([-1e30, -1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4, 1e30], dtype=torch.float64)
    case.inputs["dd_a_BTH"] = extremes[None, :, None].expand(1, 9, 2)
    case.inputs["dd_dt_BTH"] = torch.stack([extremes.clamp(max=1e4), extremes.flip(0).clamp(max=1e4)], 1)[None]
    p = prepare(**case.inputs, valid_BT=None, **case.parameters)
    decay = p.log_decay_BTH.exp()
    assert bool(((decay >= 0) & (decay <= 1)).all())
    assert bool((p.gamma_BTH >= 0).all())
    assert bool((p.left_BTH >= 0).all())


def test_heavy_tail_is_smooth_positive_and_never_exponentially_small():
    a = torch.tensor([-99.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    f = heavy_tail(a)
    (slope,) = torch.autograd.grad(f.sum(), a)
    assert f.tolist() == [0.01, 0.5, 1.0, 2.0, 4.0]
    torch.testing.assert_close(slope, torch.tensor([1e-4, 0.25, 1.0, 1.0, 1.0], dtype=torch.float64))


def test_decay_rate_never_falls_below_its_floor():
    case = make_case(Shape())
    case.inputs["dd_a_BTH"] = torch.full_like(case.inputs["dd_a_BTH"], -1e9)
    p = prepare(**case.inputs, valid_BT=None, **case.parameters)
    torch.testing.assert_close(-p.log_decay_BTH, DECAY_FLOOR * (p.gamma_BTH + p.left_BTH))


def test_norm_stands_before_the_gate_for_each_rank_on_its_own():
    g = torch.Generator().manual_seed(0)
    y, z = torch.randn(5, 2, 3, 1, 4, generator=g), torch.randn(5, 2, 1, 4, generator=g)
    mimo = Mimo(*(torch.randn(2, 3, 4, generator=g) for _ in range(3)))
    weight = torch.randn(2, 4, generator=g)
    loud = y * torch.tensor([1.0, 1000.0, 1e-1])[:, None, None]  # the scale of a rank must not matter
    want = torch.zeros(5, 2, 4)
    for r in range(3):
        rank = y[:, :, r, 0]
        normed = rank / rank.pow(2).mean(-1, keepdim=True).sqrt() * weight
        gated = z[:, :, 0] * mimo.z_HRP[:, r]
        want += mimo.out_HRP[:, r] * normed * gated * torch.sigmoid(gated)
    torch.testing.assert_close(gate(loud, z, mimo, weight)[:, :, 0], want, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(gate(loud, z, mimo, None)[:, :, 0], want, rtol=0.1, atol=0.1)


def test_rank_one_with_unit_expansions_is_siso():
    case = make_case(Shape())
    plain = mamba3_scan_reference(**case.inputs, **case.parameters)
    one = torch.ones(4, 1, 3, dtype=torch.float64)
    expanded = mamba3_scan_reference(**case.inputs, **case.parameters | {"mimo": Mimo(one, one, one)})
    assert_close("y", expanded, plain)
