"""The Triton scan, interpreted: values, states and every gradient against the fp64 reference."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from sigma_kernels import counters, dispatch
from sigma_kernels.scan import triton_prefetch, triton_scan
from sigma_kernels.scan.op import mamba3_scan
from sigma_kernels.scan.reference import mamba3_scan_reference
from sigma_kernels.scan.state import Mimo
from tests.kernels.scan_cases import Shape, make_case, run
from tests.kernels.scan_gates import assert_within_gates

pytestmark = pytest.mark.usefixtures("every_access_lies_in_a_tensor")

SHAPES = [
    pytest.param(Shape(B=1, T=1, H=1, P=3, G=1), id="one-step"),
    pytest.param(Shape(B=2, T=75, P=18, y_norm=True), id="two-chunks-norm"),
    pytest.param(Shape(B=1, T=40, H=2, P=16, N=34, S=17, G=1, R=4, y_norm=True), id="rank-4-three-chunks"),
    pytest.param(Shape(B=1, T=70, H=2, P=5, N=6, S=2, G=1, R=3), id="rank-3-padded-rows"),
    pytest.param(Shape(B=1, T=20, H=2, P=4, N=7, S=0, G=2), id="no-rotation-odd-state"),
    pytest.param(Shape(B=1, T=66, H=1, P=8, N=256, S=40, G=1), id="four-parts-of-which-two-turn"),
    pytest.param(Shape(B=1, T=20, H=1, P=4, N=129, S=0, G=1), id="odd-state-wider-than-a-tile"),
]
PACKED = [0, 5, 6, 70, 90]


@pytest.fixture(autouse=True)
def _no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())


def results(shape: Shape, *, states: int | None = None, with_state: bool, **options) -> tuple[dict, dict]:
    """What the kernels and the fp64 reference make of the same case, rounded to fp32."""
    got = run(mamba3_scan, make_case(shape, torch.float32, states=states), with_state=with_state, **options)
    exact = make_case(shape, torch.float64, states=states)
    return got, run(mamba3_scan_reference, exact, with_state=with_state, **options)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_state", [False, True], ids=["from-zero", "from-state"])
def test_scan_equals_the_reference_in_values_states_and_gradients(shape, with_state):
    if with_state and shape.N > 64:
        pytest.skip("the state adds nothing to this shape")
    assert_within_gates(*results(shape, with_state=with_state))
    assert counters.get("scan.backward") == 1


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[4]])
def test_what_is_asked_of_the_cache_is_what_a_program_of_the_same_launch_reads(shape, monkeypatch):
    load, init_args = interpreter.InterpreterBuilder.create_masked_load, interpreter.GridExecutor._init_args_hst
    asked, read, launches = set(), set(), []

    def close_launch():
        assert asked <= read, "a kernel asks for what none of its programs reads"
        launches.append(len(asked))
        asked.clear()
        read.clear()

    def begin(self, args, kwargs):
        close_launch()
        return init_args(self, args, kwargs)

    def noted_load(self, pointers, mask, *rest):
        read.update(pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)].ravel().tolist())
        return load(self, pointers, mask, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", begin)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", noted_load)
    monkeypatch.setattr(
        triton_prefetch, "_ask_for", lambda pointers: asked.update(pointers.handle.data.ravel().tolist())
    )
    monkeypatch.setattr(triton_prefetch, "PROGRAMS_AHEAD", shape.H)  # the next chunk, as many as there are
    run(mamba3_scan, make_case(shape, torch.float32))
    close_launch()
    assert sum(map(bool, launches)) >= 5, "all kernels over chunks ask"


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
def test_in_16_bits_everything_is_within_its_gate(rank, norm):
    shape, dtype = Shape(B=1, T=37, H=2, P=16, G=1, R=rank, y_norm=norm), torch.float16
    case, exact = make_case(shape, torch.float32), make_case(shape, torch.float32)
    case.inputs = {name: t.to(dtype) for name, t in case.inputs.items()}
    exact.inputs = {name: t.to(dtype).double() for name, t in exact.inputs.items()}
    assert_within_gates(run(mamba3_scan, case), run(mamba3_scan_reference, exact), dtype)


@pytest.mark.parametrize("by_skip", [False, True], ids=["inside-a-step", "by-D"])
def test_y_has_the_difference_of_two_ranks_that_agree_in_16_bits(by_skip):
    shape, dtype = Shape(B=1, T=1, H=1, P=16, N=2, S=0, G=1, R=2), torch.float16
    case, exact = make_case(shape, torch.float32), make_case(shape, torch.float64)
    one, up_down = torch.ones(1, 2, 16), torch.tensor([1.0, -1.0])[None, :, None]
    nearly_one = one.clone()
    nearly_one[:, 0] += 2**-12
    for where in (case, exact):  # rank 0 minus rank 1: with x = 1 both are 1 in fp16
        where.inputs["x_BTHP"].fill_(1)
        where.parameters["in_norm_N"].zero_()
        where.parameters["in_bias_HRN"] = (up_down * (not by_skip)).expand(1, 2, 2).to(where.parameters["skip_H"])
        where.parameters["out_bias_HRN"].fill_(1024)
        where.parameters["skip_H"].fill_(1024 * by_skip)
        combine = up_down.expand(1, 2, 16) if by_skip else one
        where.parameters["mimo"] = Mimo(*(t.to(where.parameters["skip_H"]) for t in (nearly_one, one, combine)))
    case.inputs = {name: t.to(dtype) for name, t in case.inputs.items()}
    exact.inputs = {name: t.double() for name, t in case.inputs.items()}
    y, want = (scan(**c.inputs, **c.parameters) for scan, c in ((mamba3_scan, case), (mamba3_scan_reference, exact)))
    assert want.abs().max() > 1e-3
    assert_within_gates({"y": y}, {"y": want}, dtype)


def test_gradients_of_narrow_biases_are_not_bound_by_their_range():
    shape, dtype = Shape(B=1, T=37, H=2, P=16, G=1, R=2), torch.bfloat16
    case, grads = make_case(shape, torch.float32), []
    case.inputs = {name: t.to(dtype) for name, t in case.inputs.items()}
    biases = [case.parameters[name].requires_grad_() for name in ("in_bias_HRN", "out_bias_HRN")]
    for scale in (1.0, 2.0**20):
        y = mamba3_scan(**case.inputs, **case.parameters)
        grads.append(torch.autograd.grad(y, biases, torch.full_like(y, scale)))
    for small, large in zip(*grads, strict=True):
        assert large.abs().max() > torch.finfo(torch.float16).max
        assert torch.equal(large, small * 2**20)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_biases_are_read_in_16_bits_where_each_row_has_its_own_and_x_has_16(rank, dtype, monkeypatch):
    forward, seen = triton_scan.launch_forward, []
    monkeypatch.setattr(triton_scan, "launch_forward", lambda n, given: (seen.append(given), forward(n, given))[1])
    case = make_case(Shape(B=1, T=3, H=1, P=4, G=1, R=rank), torch.float32)
    mamba3_scan(**{name: t.to(dtype) for name, t in case.inputs.items()}, **case.parameters)
    wanted = torch.float16 if rank > 1 and dtype != torch.float32 else torch.float32
    assert {seen[0].q_bias.dtype, seen[0].k_bias.dtype} == {wanted}


def test_a_rank_beyond_the_tiles_of_the_kernels_is_refused_by_them():
    case = make_case(Shape(B=1, T=3, H=1, P=4, G=1, R=5), torch.float32)
    with pytest.raises(dispatch.BackendError, match="R <= 4"):
        mamba3_scan(**case.inputs, **case.parameters)


@pytest.mark.parametrize("rank", [1, 4])
def test_packed_sequences_do_not_see_each_other(rank):
    shape = Shape(B=1, T=90, H=2, P=16, G=1, R=rank, y_norm=True)
    bounds = torch.tensor(PACKED, dtype=torch.int32)
    case, exact = make_case(shape, torch.float32), make_case(shape, torch.float64)
    got, want = ({}, {})
    for scan, where, into in ((mamba3_scan, case, got), (mamba3_scan_reference, exact, want)):
        leaves = where.leaves()
        for leaf in leaves.values():
            leaf.requires_grad_()
        y = scan(**where.inputs, **where.parameters, cu_seqlens=bounds)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y)
        grads = torch.autograd.grad(y, list(leaves.values()), upstream)
        into |= {"y": y.detach()} | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    assert_within_gates(got, want)


def test_packed_sequences_with_states_are_a_padded_batch():
    shape = Shape(B=1, T=40, H=2, P=16, G=1, R=2)
    bounds = torch.tensor([0, 5, 5, 33, 40], dtype=torch.int32)
    assert_within_gates(*results(shape, states=4, with_state=True, cu_seqlens=bounds))


def test_nan_in_padded_steps_reaches_neither_outputs_nor_gradients():
    shape = Shape(B=2, T=30, H=2, P=16, G=1)
    longer = torch.rand(2, 38, generator=torch.Generator().manual_seed(3)) > 0.4
    valid = longer[:, 8:]  # as the model cuts it after a cached prefix: not dense
    valid[:, 12] = True
    case, exact = make_case(shape, torch.float32), make_case(shape, torch.float64)
    for tensor in case.inputs.values():
        tensor[~valid] = torch.nan
    got = run(mamba3_scan, case, with_state=True, valid_BT=valid)
    assert_within_gates(got, run(mamba3_scan_reference, exact, with_state=True, valid_BT=valid))


def test_a_row_without_a_valid_step_keeps_its_state_bit_for_bit():
    case = make_case(Shape(B=2, T=5, H=2, P=4, G=1), torch.float32)
    valid = torch.tensor([[True] * 5, [False] * 5])
    _, state = mamba3_scan(
        **case.inputs, **case.parameters, initial_state=case.state, return_final_state=True, valid_BT=valid
    )
    for name, before in vars(case.state).items():
        assert torch.equal(getattr(state, name)[1], before[1]), name


def test_one_step_with_any_stride_of_time():
    shape = Shape(B=3, T=1, H=2, P=4, G=1)
    case, exact = make_case(shape, torch.float32), make_case(shape, torch.float64)
    for name in ("dd_dt_BTH", "dd_a_BTH", "trap_BTH"):
        case.inputs[name] = case.inputs[name].transpose(0, 2).contiguous().transpose(0, 2)
    assert_within_gates(run(mamba3_scan, case), run(mamba3_scan_reference, exact))


def test_columns_of_a_wider_projection_are_read_in_place():
    shape = Shape(B=2, T=10, H=2, P=4, G=1)
    case, exact = make_case(shape, torch.float32), make_case(shape, torch.float64)
    wide = torch.full((2, 10, 50), torch.nan)
    wide[..., 5:13], wide[..., 20:28] = case.inputs["x_BTHP"].flatten(2), case.inputs["z_BTHP"].flatten(2)
    case.inputs["x_BTHP"] = wide[..., 5:13].unflatten(-1, (2, 4))
    case.inputs["z_BTHP"] = wide[..., 20:28].unflatten(-1, (2, 4))
    got = run(mamba3_scan, case)
    assert_within_gates(got, run(mamba3_scan_reference, exact))
