"""The chunked scan equals the sequential one in values and in every gradient, whatever the chunks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_kernels.scan.chunked import chunk_grid, mamba3_scan_chunked
from sigma_kernels.scan.dual import DualFn, Masks
from sigma_kernels.scan.reference import mamba3_scan_reference
from tests.kernels.scan_cases import Shape, assert_same, make_case, run

SHAPES = [
    Shape(),
    Shape(R=2),
    Shape(R=3, y_norm=True, G=4),
    Shape(T=1),
    Shape(T=1, R=2),
    Shape(B=1, T=50, H=10, G=1, P=2, N=4, S=2),
    Shape(S=0, N=5, R=2),
    Shape(S=4, y_norm=True),
]


# The sizes of trained layers, too, in few steps.
SHAPES += [Shape(B=1, T=5, H=2, P=p, N=n, R=2, S=n // 4, G=1) for p in (32, 64, 128) for n in (64, 128, 256)]


@pytest.mark.parametrize("with_state", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunked_equals_sequential_in_values_and_every_gradient(shape, with_state):
    """Both use the same int32 phase, so nothing but the order of sums differs: 1e-10."""
    case = make_case(shape)
    want = run(mamba3_scan_reference, case, with_state=with_state)
    assert_same(run(mamba3_scan_chunked, case, with_state=with_state, chunk=8), want)


@pytest.mark.parametrize("rank", [1, 2])
def test_result_does_not_depend_on_the_chunk_and_phases_not_by_a_bit(rank):
    case = make_case(Shape(T=21, R=rank))
    want = run(mamba3_scan_chunked, case, with_state=True, chunk=64 * rank)
    for chunk in (1, 3, 8, 16, 20, 21):
        assert_same(run(mamba3_scan_chunked, case, with_state=True, chunk=chunk), want)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    steps=st.integers(1, 9),
    groups=st.integers(1, 2),
    repeat=st.integers(1, 2),
    size=st.integers(1, 3),
    half=st.integers(1, 3),
    rank=st.integers(1, 3),
    pairs=st.integers(0, 3),
    chunk=st.integers(1, 12),
    y_norm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chunked_equals_sequential_for_any_small_shape(
    batch, steps, groups, repeat, size, half, rank, pairs, chunk, y_norm, seed
):
    shape = Shape(batch, steps, groups * repeat, size, 2 * half, rank, min(pairs, half), groups, y_norm)
    case = make_case(shape, seed=seed)
    want = run(mamba3_scan_reference, case, with_state=True)
    assert_same(run(mamba3_scan_chunked, case, with_state=True, chunk=chunk), want)


@pytest.mark.parametrize("rank", [1, 2])
def test_output_does_not_depend_on_later_inputs(rank):
    case = make_case(Shape(T=11, R=rank))
    before = mamba3_scan_chunked(**case.inputs, **case.parameters, chunk=4 * rank)
    for t in case.inputs.values():
        t[:, 6:] += 3.0
    after = mamba3_scan_chunked(**case.inputs, **case.parameters, chunk=4 * rank)
    assert torch.equal(after[:, :6], before[:, :6])
    assert not torch.equal(after[:, 6], before[:, 6])


@pytest.mark.parametrize("rank", [1, 2])
def test_scan_passes_gradcheck_where_no_phase_is_rounded(rank):
    """S = 0: a rounded phase is a staircase, which finite differences cannot climb."""
    case = make_case(Shape(B=1, T=5, H=2, P=2, N=3, R=rank, S=0, G=1, y_norm=True))
    names, leaves = list(case.inputs), list(case.leaves().values())

    def scan(*_: torch.Tensor) -> torch.Tensor:
        return mamba3_scan_chunked(**{n: case.inputs[n] for n in names}, **case.parameters, chunk=2 * rank)  # type: ignore[return-value]

    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(scan, leaves)


@pytest.mark.parametrize("packed", [False, True], ids=["one sequence", "packed"])
def test_dual_form_passes_gradcheck(packed):
    g = torch.Generator().manual_seed(0)

    def leaf(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64).requires_grad_()

    chunks, heads, rank, steps, size, state = 3, 2, 2, 3, 2, 3
    rows = (chunks, heads, rank, steps)
    log_decay = (-torch.rand(chunks, heads, steps, generator=g, dtype=torch.float64)).requires_grad_()
    scale, gamma, skip, initial = (
        leaf(*rows[:2], steps),
        leaf(*rows[:2], steps),
        leaf(heads),
        leaf(1, heads, size, state),
    )
    masks = Masks(torch.ones(1, 1, steps, steps, dtype=torch.bool).tril(-1), None, None)
    if packed:
        number = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 2, 2]])
        inside = (number[:, :, None] == number[:, None]).tril(-1)[:, None]
        entering = number == torch.tensor([[-1], [0], [1]])
        masks = Masks(inside, entering[:, None], (number == number[:, -1:])[:, None])

    def dual(*operands):
        return DualFn.apply(*operands, masks)

    leaves = (leaf(*rows, state), leaf(*rows, state), leaf(*rows, size), log_decay, scale, gamma, skip, initial)
    assert torch.autograd.gradcheck(dual, leaves)


def test_decays_over_a_chunk_stay_finite_where_their_inverse_overflows():
    case = make_case(Shape(T=16), dtype=torch.float32)
    case.inputs["dd_a_BTH"] += 50.0
    case.inputs["dd_dt_BTH"] += 10.0  # one step decays by e^-500, a chunk by e^-8000
    results = run(mamba3_scan_chunked, case, chunk=16)
    assert all(bool(t.isfinite().all()) for t in results.values())


@pytest.mark.parametrize("rank", [1, 2])
def test_two_runs_are_equal_bit_for_bit(rank):
    first, second = (run(mamba3_scan_chunked, make_case(Shape(R=rank), torch.float32), chunk=8) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("rank", [1, 2])
def test_fp32_is_close_to_float64(rank):
    """The metric of the numerics section, ||a - b|| / ||b||, with its bound for fp32 gradients."""
    shape = Shape(T=200, R=rank, y_norm=True)
    exact = run(partial(mamba3_scan_chunked, chunk=64), make_case(shape))
    for name, got in run(partial(mamba3_scan_chunked, chunk=64), make_case(shape, torch.float32)).items():
        if name != "final.phase":
            error = (got.double() - exact[name]).norm() / exact[name].norm()
            assert error < (1e-5 if name == "y" else 5e-5), f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    "steps, chunk, rank, grid",
    [(1, 64, 1, (1, 1)), (50, 64, 1, (1, 50)), (65, 64, 1, (2, 33)), (100, 64, 2, (4, 25)), (3, 1, 4, (3, 1))],
)
def test_grid_covers_all_steps_with_even_chunks(steps, chunk, rank, grid):
    assert chunk_grid(steps, chunk, rank) == grid
