"""The Triton decode step, interpreted: values and state against the reference, in float64 within 1e-10."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from sigma_kernels import counters, dispatch
from sigma_kernels.scan import step_kernel
from sigma_kernels.scan.kernel_math import cos_sin, turns_to_int32
from sigma_kernels.scan.op import mamba3_scan, mamba3_step
from sigma_kernels.scan.phase import TURN, quantize_turns, radians, wrap_turns
from sigma_kernels.scan.state import Mamba3State
from tests.kernels.scan_cases import Shape, make_case
from tests.kernels.step_cases import assert_step, step_with
from tests.kernels.tolerance import assert_close

SHAPES = [
    Shape(),
    Shape(P=5, N=16, R=2, S=8, G=4),
    Shape(B=1, H=3, P=3, R=3, G=1, y_norm=True),
    Shape(N=7, S=0, y_norm=True),
    Shape(H=2, P=6, N=10, R=4, S=5),
    Shape(B=1, H=1, P=1, N=2, S=1, G=1),
]


@pytest.fixture(params=[64, 2], ids=["whole", "blocks"])
def rows(request, monkeypatch):
    """A head in one block, and a head in blocks of two rows."""
    monkeypatch.setattr(step_kernel, "ROWS", request.param)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_equals_the_reference_in_values_and_state(shape):
    case = make_case(shape)
    want, got = step_with("reference", case), step_with("triton", case)
    assert_step(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_in_lower_precision_is_close_to_the_float64_reference(dtype):
    case = make_case(Shape(R=2, y_norm=True), dtype)
    assert_step(step_with("triton", case), step_with("reference", case, exact=True))


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("shape", [Shape(), Shape(R=2, y_norm=True)], ids=str)
def test_a_bf16_state_is_rounded_once_after_y_is_read(shape, monkeypatch):
    monkeypatch.setattr(step_kernel, "ROWS_WHOLE", step_kernel.ROWS)
    case = make_case(shape, torch.float32)
    case.state = replace(case.state, state_BHPN=case.state.state_BHPN.bfloat16())
    got, want = step_with("triton", case), step_with("reference", case, exact=True)
    assert got["state_BHPN"].dtype == torch.bfloat16
    assert_step(got, want)


def test_a_padded_row_keeps_its_state_bit_for_bit_and_nan_in_it_reaches_nothing():
    case = make_case(Shape(B=3, R=2, y_norm=True))
    for t in case.inputs.values():
        t[1] = torch.nan
    valid_B = torch.tensor([True, False, True])
    got, want = (step_with(backend, case, valid_B=valid_B) for backend in ("triton", "reference"))
    assert_step(got, want)
    assert bool((got["y"][1] == 0).all())
    for name, before in vars(case.state).items():
        assert torch.equal(got[name][1], before[1])


def test_columns_of_a_wider_projection_and_a_transposed_key_are_used_in_place():
    case = make_case(Shape(R=2))
    want = step_with("reference", case)
    case.inputs = {name: _in_a_wider_row(t) for name, t in case.inputs.items()}
    key = case.state.key_BRHN.transpose(1, 2).contiguous().transpose(1, 2)
    h = case.state.state_BHPN.mT.contiguous().mT  # not dense: stepped in a copy and copied back
    case.state = replace(case.state, key_BRHN=key, state_BHPN=h)
    assert not any(t.is_contiguous() for t in (key, h, case.inputs["x_BTHP"]))
    assert_step(step_with("triton", case), want)


def test_a_step_writes_into_the_tensors_of_the_state_and_nothing_behind_them():
    case = make_case(Shape(P=5, N=10, S=3))
    wide = {name: _poisoned(t) for name, t in vars(case.state).items()}
    state = Mamba3State(**{name: wide[name][: t.numel()].view(t.shape) for name, t in vars(case.state).items()})
    mamba3_step(state, *case.slice(slice(None), 0), **case.parameters)
    for (name, t), before in zip(vars(state).items(), vars(case.state).values(), strict=True):
        assert not torch.equal(t, before), name
        assert bool((wide[name][t.numel() :] == 77).all()), name


def test_prefill_and_decode_equal_the_whole_scan():
    case = make_case(Shape(T=6, R=2, S=4))
    whole, final = _scan(case, 6)
    prefix, state = _scan(case, 3)
    ys = [prefix]
    for t in range(3, 6):
        ys.append(mamba3_step(state, *case.slice(slice(None), t), **case.parameters)[:, None])
    assert_close("y", torch.cat(ys, 1), whole)
    assert_step(vars(state), vars(final))


def test_the_kernel_counts_as_the_reference_does():
    case = make_case(Shape())
    step_with("triton", case)
    assert counters.snapshot() == {"scan.step": 1, "scan.step.use_triton": 1}
    counters.load({})
    step_with("reference", case)
    assert counters.snapshot() == {"scan.step": 1, "scan.step.use_reference": 1}


@triton.jit
def _turns_kernel(turns_ptr, count_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    turns = tl.load(turns_ptr + i, mask=i < n, other=0.0)
    tl.store(count_ptr + i, turns_to_int32(turns), mask=i < n)


@triton.jit
def _angles_kernel(phase_ptr, cos_ptr, sin_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    cos, sin = cos_sin(tl.load(phase_ptr + i, mask=i < n, other=0), tl.float32)
    tl.store(cos_ptr + i, cos, mask=i < n)
    tl.store(sin_ptr + i, sin, mask=i < n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_increments_equal_the_reference_bit_for_bit_at_ties_at_the_wrap_and_far_beyond_it(dtype):
    ties = torch.tensor([0.5, 1.5, 2.5, 3.5, 0.49999997, 4194303.5, 8388607.5, 8388609.0], dtype=torch.float64) / TURN
    large = torch.tensor([0.5, 0.50000006, 0.75, 1.0, 1.4999999, 123.456, 20.0, 5e5, 2.0**30, 0.0], dtype=torch.float64)
    random = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.1
    turns = torch.cat([ties, large, random])
    turns = torch.cat([turns, -turns]).to(dtype)
    count = torch.empty(turns.shape, dtype=torch.int32)
    _turns_kernel[(1,)](turns, count, turns.numel(), BLOCK=2048)
    assert torch.equal(count, wrap_turns(quantize_turns(turns)))


def test_cosine_and_sine_of_every_octant_are_exact_to_a_tenth_of_a_millionth():
    edges = torch.arange(-8, 8) * 2**28
    phase = torch.cat([edges, edges + 1, edges - 1, torch.tensor([2**31 - 1]), torch.arange(-(2**31), 2**31, 7654321)])
    phase = phase.clamp(-(2**31)).to(torch.int32)
    cos, sin = torch.empty(2, phase.numel()).unbind()
    _angles_kernel[(1,)](phase, cos, sin, phase.numel(), BLOCK=1024)
    angle = radians(phase, torch.float64)
    assert (cos - angle.cos()).abs().max() < 1e-7
    assert (sin - angle.sin()).abs().max() < 1e-7


def _scan(case, steps):
    dispatch.set_backend("reference")
    inputs = case.slice(slice(None), slice(0, steps))
    out = mamba3_scan(*inputs, **case.parameters, return_final_state=True)
    dispatch.set_backend("triton")
    return out


def _in_a_wider_row(t: torch.Tensor) -> torch.Tensor:
    """The same values, [B, T, ...], as columns of a wider row with NaN around them."""
    flat = t.flatten(2)
    wide = torch.full((*flat.shape[:2], flat.shape[2] + 9), torch.nan, dtype=t.dtype)
    wide[..., 4:-5] = flat
    return wide[..., 4:-5].unflatten(2, t.shape[2:])


def _poisoned(t: torch.Tensor) -> torch.Tensor:
    return torch.cat([t.flatten(), torch.full((40,), 77, dtype=t.dtype)])
