"""Segments of chunks walked side by side, interpreted: as one segment, and as the fp64 reference."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from sigma_kernels.scan import triton_call
from sigma_kernels.scan.op import mamba3_scan
from sigma_kernels.scan.packing import Packing
from sigma_kernels.scan.reference import mamba3_scan_reference
from sigma_kernels.scan.triton_call import Inputs, Phases, Sizes, shape_class
from sigma_kernels.scan.triton_launch import tiles_of
from sigma_kernels.scan.triton_scan import pass_state_gradients, pass_states
from tests.kernels.scan_cases import Case, Shape, make_case, run
from tests.kernels.scan_gates import assert_within_gates, relative_error

pytestmark = pytest.mark.usefixtures("every_access_lies_in_a_tensor")

STEPS, T = 16, 109  # seven chunks, of which the last is not full
TWO_ROWS = Shape(B=2, T=T, H=1, P=5, N=6, S=3, G=1)
RANK_4 = Shape(B=1, T=T, H=2, P=16, N=34, S=17, G=1, R=4, y_norm=True)  # two pair blocks
SHAPES = [
    pytest.param(TWO_ROWS, id="two-rows"),
    pytest.param(RANK_4, id="rank-4"),
    pytest.param(Shape(B=1, T=T, H=1, P=4, N=7, S=0, G=1), id="no-rotation-odd-state"),
]
SEGMENTS = {1: 7, 2: 3, 3: 2}  # by the fewest chunks of one; the 3 have 3, 3 and 1 chunks
# Beside segments of 48 steps: sequences inside one, up to its end and over it; then one over all but a few steps.
PACKED = [[0, 5, 20, 48, 60, T], [0, 10, T]]


@pytest.fixture(autouse=True)
def _no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    monkeypatch.setattr(triton_call, "tiles_of", lambda kind: replace(tiles_of(kind), rows=STEPS * kind.rank))


@pytest.fixture
def launched(monkeypatch) -> Counter[str]:
    """How often each kernel is launched."""
    counter, init_args = Counter(), interpreter.GridExecutor._init_args_hst

    def note(self, args, kwargs):
        counter[self.fn.__name__] += 1
        return init_args(self, args, kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", note)
    return counter


@pytest.fixture
def cut(monkeypatch):
    """Cuts every scan into segments of at least so many chunks."""

    def into(least: int) -> None:
        for name, value in {"PASS_ENOUGH": 1000, "PASS_PROGRAMS": 1000, "SEGMENT_CHUNKS": least}.items():
            monkeypatch.setattr(triton_call, name, value)

    return into


def case_of(shape: Shape, dtype: torch.dtype) -> Case:
    """Steps so small that a segment leaves a good part of the state that enters it."""
    case = make_case(shape, dtype)
    case.parameters["dt_bias_H"] -= 3
    return case


def sizes(shape: Shape) -> Sizes:
    s = shape
    tiles = triton_call.tiles_of(shape_class(s.P, s.N, s.R, torch.float32, "sm_90"))
    return Sizes(s.B, s.T, s.H, s.P, s.N, s.R, s.G, s.S, tiles)


def size_of(B: int, T: int, H: int, N: int, R: int) -> Sizes:
    """The sizes of a call in bf16 with P 64."""
    none: dict[str, Tensor] = dict.fromkeys(Inputs.__dataclass_fields__)
    x, k = (torch.empty(*size, dtype=torch.bfloat16, device="meta") for size in ((B, T, H, 64), (B, T, R, 1, N)))
    return Sizes.of(Inputs(**{**none, "x": x, "k": k, "angle": k[:, :, 0, 0, : N // 2]}))


def test_few_programs_of_many_chunks_take_segments_and_others_one(monkeypatch):
    monkeypatch.setattr(triton_call, "tiles_of", tiles_of)
    assert size_of(8, 4096, 32, 128, 1).segment is None
    assert size_of(1, 512, 8, 64, 1).segment is None
    long = size_of(1, 65536, 8, 64, 2)
    assert (long.segment, long.segments) == (64, 32)
    ragged = size_of(1, 65536 + 1, 8, 64, 2)
    assert (ragged.segment, ragged.segments) == (65, 32)
    monkeypatch.setattr(triton_call, "PASS_PROGRAMS", 64)
    assert size_of(1, 65536, 8, 64, 2).segments == 4
    monkeypatch.setattr(triton_call, "SEGMENT_CHUNKS", 1000)
    assert size_of(1, 65536, 8, 64, 2).segments == 2
    monkeypatch.setattr(triton_call, "PASS_ENOUGH", 16)
    assert size_of(1, 65536, 8, 64, 2).segments == 1


def passes(n: Sizes, bounds: list[int] | None, around: bool) -> dict[str, Tensor]:
    """What the passes make of random numbers; `around`: from an initial state and a gradient of the final one."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    total = torch.randint(-(2**31), 2**31, (n.B, n.H, n.chunks, n.S), generator=generator).int()
    phases = Phases(*[normal(0)] * 7)
    phases.total_BHCS, phases.g_BHT = total, -torch.rand(n.B, n.H, n.T, generator=generator)
    given = Inputs(**dict.fromkeys(Inputs.__dataclass_fields__))
    outer = normal(2, n.B, n.H, n.N, n.P)
    given.initial, dfinal = outer if around else (None, None)
    if bounds is not None:
        given.sequence = Packing.of(torch.tensor(bounds), n.T).sequence_T.int()
    added, dstart = sums = normal(2, n.B, n.H, n.chunks, n.N2, n.P)
    sums[..., n.N :, :] = 0  # the last of an odd number of channels has no other
    starts, final = pass_states(n, given, phases, added)
    dend, dinitial, (decay, phase) = pass_state_gradients(n, given, phases, starts, final, dstart, dfinal)
    return {"starts": starts, "final": final, "dend": dend, "dinitial": dinitial, "decay": decay, "phase": phase}


@pytest.mark.parametrize("around", [False, True], ids=["from-zero", "from-states"])
@pytest.mark.parametrize("bounds", [None, *PACKED], ids=["one-sequence", "packed", "long"])
@pytest.mark.parametrize("shape", SHAPES)
def test_segments_of_any_length_pass_what_one_segment_passes(shape, bounds, around):
    n = sizes(shape)
    assert n.chunks == 7
    want = passes(n, bounds, around)
    for segment in (1, 2, 3, 6):
        for name, got in passes(replace(n, segment=segment), bounds, around).items():
            assert relative_error(got, want[name]) < 2e-6, (name, segment)


def test_segments_may_end_in_any_order(monkeypatch):
    n, set_index = replace(sizes(TWO_ROWS), segment=2), interpreter.InterpreterBuilder.set_grid_idx
    want = passes(n, None, True)
    backwards = lambda self, x, y, z: set_index(self, x, y, self.grid_dim[2] - 1 - z)  # noqa: E731
    monkeypatch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", backwards)
    for name, got in passes(n, None, True).items():
        assert torch.equal(got, want[name]), name


@pytest.mark.parametrize("least", SEGMENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_segments_equal_the_reference_in_values_states_and_gradients(shape, least, cut, launched):
    cut(least)
    got = run(mamba3_scan, case_of(shape, torch.float32), with_state=True)
    assert_within_gates(got, run(mamba3_scan_reference, case_of(shape, torch.float64), with_state=True))
    assert launched["segment_pass_kernel"] == launched["border_pass_kernel"] == 2


def test_one_segment_launches_no_more_than_before(launched):
    mamba3_scan(**(case := case_of(TWO_ROWS, torch.float32)).inputs, **case.parameters)
    assert launched["state_pass_kernel"] == 1
    assert launched.keys().isdisjoint({"segment_pass_kernel", "border_pass_kernel"})


def results(scan, case: Case, bounds: list[int]) -> dict[str, Tensor]:
    """y and every gradient of packed sequences."""
    leaves = case.leaves()
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = scan(**case.inputs, **case.parameters, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y)
    grads = torch.autograd.grad(y, list(leaves.values()), upstream)
    return {"y": y.detach()} | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("bounds", PACKED, ids=["packed", "long"])
@pytest.mark.parametrize("shape", [replace(TWO_ROWS, B=1), RANK_4], ids=["rank-1", "rank-4"])
def test_packed_sequences_in_segments_equal_the_reference(shape, bounds, cut, launched):
    cut(2)
    got = results(mamba3_scan, case_of(shape, torch.float32), bounds)
    assert_within_gates(got, results(mamba3_scan_reference, case_of(shape, torch.float64), bounds))
    assert launched["segment_pass_kernel"] == launched["border_pass_kernel"] == 2
