"""The Triton decode step on a GPU: against the float64 reference, phases bit for bit, inside a CUDA graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.scan.op import mamba3_scan, mamba3_step
from sigma_kernels.scan.reference import mamba3_scan_reference
from sigma_kernels.scan.state import Mamba3State
from tests.kernels.scan_cases import Case, Shape, make_case
from tests.kernels.step_cases import assert_step, copy_of, moved, step_with

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_backend")]

SHAPES = [
    Shape(),
    Shape(B=1, H=1, P=1, N=16, S=8, G=1),
    Shape(B=3, H=10, P=50, N=64, S=16, G=2),
    Shape(B=2, H=6, P=64, N=128, S=32, G=1, y_norm=True),
    Shape(B=2, H=4, P=64, N=64, R=4, S=16, G=1),
    Shape(B=2, H=4, P=32, N=128, R=2, S=64, G=4, y_norm=True),
    Shape(B=2, H=2, P=128, N=256, R=3, S=64, G=1, y_norm=True),
    Shape(B=2, H=2, P=200, N=100, S=50, G=1, y_norm=True),
    Shape(B=2, H=2, P=5, N=7, R=2, S=0, G=1),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def on_gpu(shape: Shape, dtype: torch.dtype, *, state: torch.dtype | None = None, steps: int = 1) -> Case:
    """A case on the GPU with learned tensors in fp32 (fp64), as a model keeps them."""
    case = make_case(replace(shape, T=steps), torch.float64 if dtype == torch.float64 else torch.float32)
    case = moved(case, "cuda")
    case.inputs = {name: t.to(dtype) for name, t in case.inputs.items()}
    if state is not None:
        case.state = replace(case.state, state_BHPN=case.state.state_BHPN.to(state))
    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_state_match_the_float64_reference(shape, dtype):
    case = on_gpu(shape, dtype)
    assert_step(step_with("triton", case), step_with("reference", case, exact=True))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_bf16_state_is_within_one_rounding(shape):
    case = on_gpu(shape, torch.bfloat16, state=torch.bfloat16)
    assert_step(step_with("triton", case), step_with("reference", case, exact=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_phases_equal_the_reference_bit_for_bit_over_many_steps(dtype):
    """Both take softplus and tanh from libdevice: the increments, and so the sums, are the same integers."""
    case = on_gpu(Shape(B=64, H=32, P=8, N=128, S=64, G=1), dtype, steps=20)
    states = {backend: copy_of(case.state) for backend in ("triton", "reference")}
    for backend, state in states.items():
        dispatch.set_backend(backend)
        for t in range(20):
            mamba3_step(state, *case.slice(slice(None), t), **case.parameters)
    different = (states["triton"].phase_BHS != states["reference"].phase_BHS).sum()
    assert int(different) == 0, f"{int(different)} of {states['triton'].phase_BHS.numel()} phases differ"


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_graph_replays_like_separate_steps(state_dtype):
    case = on_gpu(Shape(B=4, H=8, P=64, N=128, R=2, S=32, G=1), torch.bfloat16, state=state_dtype, steps=5)
    steps = [case.slice(slice(None), t) for t in range(5)]
    eager = copy_of(case.state)
    want = [mamba3_step(eager, *inputs, **case.parameters) for inputs in steps]

    state, inputs = copy_of(case.state), [t.clone() for t in steps[0]]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # the kernel is compiled by now; capturing runs nothing
        y = mamba3_step(state, *inputs, **case.parameters)
    for new, exact in zip(steps, want, strict=True):
        for held, value in zip(inputs, new, strict=True):
            held.copy_(value)
        graph.replay()
        assert torch.equal(y, exact)
    for name, value in vars(state).items():
        assert torch.equal(value, getattr(eager, name)), name


@pytest.mark.parametrize("shape", SHAPES[:7], ids=str)
def test_prefill_and_decode_equal_the_whole_scan(shape):
    case = on_gpu(shape, torch.float32, steps=9)
    dispatch.set_backend("reference")
    whole, final = mamba3_scan_reference(**case.inputs, **case.parameters, return_final_state=True)
    prefix, state = mamba3_scan(*(t[:, :4] for t in case.inputs.values()), **case.parameters, return_final_state=True)
    dispatch.set_backend("triton")
    ys = [prefix] + [mamba3_step(state, *case.slice(slice(None), t), **case.parameters)[:, None] for t in range(4, 9)]
    assert_step({"y": torch.cat(ys, 1), **vars(state)}, {"y": whole, **vars(final)})


def test_columns_of_a_projection_are_read_in_place_and_padded_rows_stay():
    shape = Shape(B=5, H=8, P=64, N=64, R=2, S=16, G=2)
    case = on_gpu(shape, torch.bfloat16, state=torch.bfloat16)
    valid_B = torch.tensor([True, False, True, True, False], device="cuda")
    want = step_with("triton", case, valid_B=valid_B)
    wide = torch.cat([torch.full_like(t.flatten(2)[..., :7], torch.nan) if i % 2 else t.flatten(2)
                      for t in case.inputs.values() for i in (1, 0)], -1)  # fmt: skip
    wide[~valid_B] = torch.nan
    at = 0
    for name, t in case.inputs.items():
        width = t.flatten(2).shape[2]
        case.inputs[name] = wide[..., at + 7 : at + 7 + width].unflatten(2, t.shape[2:])
        at += 7 + width
    got = step_with("triton", case, valid_B=valid_B)
    assert all(torch.equal(got[name], want[name]) for name in want)
    for name, before in vars(case.state).items():
        assert torch.equal(got[name][~valid_B], before[~valid_B]), name
    assert bool((got["y"][~valid_B] == 0).all())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_poisoned_memory_past_the_end_is_neither_read_nor_written(shape):
    case = on_gpu(shape, torch.bfloat16, state=torch.bfloat16)
    want = step_with("triton", case)
    poison = {name: torch.full((t.numel() + 4096,), _poison(t), dtype=t.dtype, device="cuda")
              for name, t in (vars(case.state) | case.inputs).items()}  # fmt: skip

    def placed(name: str, t: torch.Tensor) -> torch.Tensor:
        inside = poison[name][: t.numel()].view(t.shape)
        inside.copy_(t)
        return inside

    state = Mamba3State(**{name: placed(name, t) for name, t in vars(case.state).items()})
    inputs = [placed(name, t)[:, 0] for name, t in case.inputs.items()]
    y = mamba3_step(state, *inputs, **case.parameters)
    assert torch.equal(y, want["y"])
    for name, t in vars(state).items():
        assert torch.equal(t, want[name]), name
        tail = poison[name][t.numel() :]
        assert torch.equal(tail.nan_to_num(nan=1.5) if t.is_floating_point() else tail, _tail(tail)), name


def test_many_steps_are_the_same_in_every_run():
    """A race between the reads and the writes of a head would show here."""
    case = on_gpu(Shape(B=128, H=64, P=64, N=128, S=32, G=1), torch.bfloat16, state=torch.bfloat16)
    first = None
    for _ in range(20):
        state = copy_of(case.state)
        for _ in range(4):
            y = mamba3_step(state, *case.slice(slice(None), 0), **case.parameters)
        now = [y, *vars(state).values()]
        assert first is None or all(torch.equal(a, b) for a, b in zip(now, first, strict=True))
        first = now


def test_the_kernel_ran_and_not_the_reference():
    before = counters.get("scan.step.use_triton")
    step_with("triton", on_gpu(Shape(), torch.bfloat16))
    assert counters.get("scan.step.use_triton") == before + 1


def _poison(t: torch.Tensor) -> float | int:
    return torch.nan if t.is_floating_point() else 77


def _tail(tail: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tail, 1.5 if tail.is_floating_point() else 77)
