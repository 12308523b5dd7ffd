"""State in, state out: split runs, decoding, and what the state is made of."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels.scan.op import mamba3_scan, mamba3_step
from sigma_kernels.scan.reference import mamba3_scan_reference
from sigma_kernels.scan.state import Mamba3State
from tests.kernels.scan_cases import Case, Shape, make_case
from tests.kernels.tolerance import assert_close

SCANS = [mamba3_scan_reference, mamba3_scan]
SHAPES = [Shape(), Shape(R=3, y_norm=True), Shape(R=2, S=0), Shape(H=6, G=1, S=4)]


def assert_state(got: Mamba3State, want: Mamba3State) -> None:
    assert torch.equal(got.phase_BHS, want.phase_BHS)
    for name in ("state_BHPN", "key_BRHN", "x_BHP"):
        assert_close(name, getattr(got, name), getattr(want, name))


def scan(case: Case, start: int, end: int, state: Mamba3State | None, function=mamba3_scan, **options):
    inputs = case.slice(slice(None), slice(start, end))
    return function(*inputs, **case.parameters, initial_state=state, return_final_state=True, chunk=8, **options)


@pytest.mark.parametrize("function", SCANS, ids=["sequential", "chunked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_run_split_in_two_equals_the_whole_run(shape, function):
    case = make_case(shape)
    whole, final = scan(case, 0, shape.T, case.state, function)
    for cut in (1, 5, shape.T - 1):
        head, between = scan(case, 0, cut, case.state, function)
        tail, last = scan(case, cut, shape.T, between, function)
        assert_close("y", torch.cat([head, tail], 1), whole)
        assert_state(last, final)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_flows_through_a_split_except_along_the_phase(shape):
    """An int32 phase carries no gradient: what turned it before the split does not feel what it turns behind it."""
    case = make_case(shape)
    leaves = case.leaves() | case.state_leaves()
    for leaf in leaves.values():
        leaf.requires_grad_()
    head, between = scan(case, 0, 6, case.state)
    split = torch.cat([head, scan(case, 6, shape.T, between)[0]], 1)
    whole = scan(case, 0, shape.T, case.state)[0]
    above = torch.randn(whole.shape, generator=torch.Generator().manual_seed(5), dtype=whole.dtype)
    grads = [torch.autograd.grad(y, list(leaves.values()), above, materialize_grads=True) for y in (split, whole)]
    turning = {"dd_dt_BTH", "angle_BTS", "dt_bias_H"} if shape.S else set()
    for name, got, want in zip(leaves, *grads, strict=True):
        if name not in turning:
            assert_close(f"d {name}", got, want)
        elif name != "dt_bias_H":
            assert_close(f"d {name} behind the split", got[:, 6:], want[:, 6:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prefill_and_decode_equal_the_whole_scan(shape):
    case = make_case(shape)
    whole, final = scan(case, 0, shape.T, None)
    prefix, state = scan(case, 0, 7, None)
    ys = [prefix] + [
        mamba3_step(state, *case.slice(slice(None), t), **case.parameters)[:, None] for t in range(7, shape.T)
    ]
    assert_close("y", torch.cat(ys, 1), whole)
    assert_state(state, final)


def test_decode_from_the_zero_state_equals_the_scan():
    shape = Shape(R=2)
    case = make_case(shape)
    state = Mamba3State.zeros(
        shape.B, heads=shape.H, head_size=shape.P, state_size=shape.N, rank=shape.R, pairs=shape.S, dtype=torch.float64
    )
    whole, final = scan(case, 0, shape.T, None)
    ys = [mamba3_step(state, *case.slice(slice(None), t), **case.parameters) for t in range(shape.T)]
    assert_close("y", torch.stack(ys, 1), whole)
    assert_state(state, final)


def test_step_writes_into_the_tensors_of_the_state():
    case = make_case(Shape())
    tensors = list(vars(case.state).values())
    before = [t.clone() for t in tensors]
    mamba3_step(case.state, *case.slice(slice(None), 0), **case.parameters)
    assert all(kept is now for kept, now in zip(tensors, vars(case.state).values(), strict=True))
    assert not any(torch.equal(now, old) for now, old in zip(tensors, before, strict=True))


def test_step_leaves_the_whole_state_of_a_padded_row_bit_for_bit():
    case = make_case(Shape(R=2))
    before = [t.clone() for t in vars(case.state).values()]
    inputs = case.slice(slice(None), 0)
    for t in inputs:
        t[1] = torch.nan
    y = mamba3_step(case.state, *inputs, **case.parameters, valid_B=torch.tensor([True, False]))
    for now, old in zip(vars(case.state).values(), before, strict=True):
        assert torch.equal(now[1], old[1])
        assert not torch.equal(now[0], old[0])
    assert bool((y[1] == 0).all())
    assert bool(y[0].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_state_is_fp32_and_the_output_keeps_the_dtype_of_the_input(dtype):
    case = make_case(Shape(R=2), dtype)
    y, state = scan(case, 0, 5, None)
    stepped = mamba3_step(state, *case.slice(slice(None), 5), **case.parameters)
    assert y.dtype == stepped.dtype == dtype
    assert state.phase_BHS.dtype == torch.int32
    assert state.state_BHPN.dtype == state.key_BRHN.dtype == state.x_BHP.dtype == torch.float32


@pytest.mark.parametrize("function", SCANS, ids=["sequential", "chunked"])
def test_decoding_from_a_state_leaves_the_scanned_input_alone(function):
    case = make_case(Shape(T=4))
    before = [t.clone() for t in case.inputs.values()]
    _, state = scan(case, 0, 4, None, function)
    mamba3_step(state, *(torch.ones_like(t) for t in case.slice(slice(None), 0)), **case.parameters)
    assert all(torch.equal(t, old) for t, old in zip(case.inputs.values(), before, strict=True))
