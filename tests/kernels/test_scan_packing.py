"""Packed sequences do not see each other, and padding is as if it were not there."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest
import torch

from sigma_kernels.scan.chunked import mamba3_scan_chunked
from sigma_kernels.scan.reference import mamba3_scan_reference
from sigma_kernels.scan.state import Mamba3State
from tests.kernels.scan_cases import Case, Shape, assert_same, make_case, run
from tests.kernels.tolerance import assert_close

SCANS = [mamba3_scan_reference, mamba3_scan_chunked]
IDS = ["sequential", "chunked"]
BOUNDS = [0, 1, 6, 6, 17, 19]  # a single token, an empty sequence, one longer than a chunk
CU = torch.tensor(BOUNDS, dtype=torch.int32)
SPANS = list(pairwise(BOUNDS))


def packed_case(rank: int) -> Case:
    return make_case(Shape(B=1, T=19, R=rank, y_norm=True), states=len(SPANS))


def separately(case: Case, scan, **options):
    """The sequences one by one; an empty one keeps its state."""
    ys, states = [], []
    initial = options.pop("initial_state", None)
    valid = options.pop("valid_BT", None)
    for i, (a, b) in enumerate(SPANS):
        own = None if initial is None else Mamba3State(*(t[i : i + 1] for t in vars(initial).values()))
        if a < b:
            mask = {} if valid is None else {"valid_BT": valid[:, a:b]}
            inputs = case.slice(slice(None), slice(a, b))
            y, own = scan(*inputs, **case.parameters, initial_state=own, return_final_state=True, **mask)
            ys.append(y)
        elif own is None:
            own = Mamba3State(*(torch.zeros_like(t[i : i + 1]) for t in vars(case.state).values()))
        states.append(own)
    return torch.cat(ys, 1), Mamba3State(
        *(torch.cat([getattr(s, f.name) for s in states]) for f in fields(Mamba3State))
    )


@pytest.mark.parametrize("with_state", [False, True], ids=["from zero", "from states"])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("scan", SCANS, ids=IDS)
def test_packed_equals_separate_in_values_states_and_every_gradient(scan, rank, with_state):
    case = packed_case(rank)

    def separate(*_, initial_state, **__):
        return separately(case, mamba3_scan_reference, initial_state=initial_state)

    want = run(separate, case, with_state=with_state)
    assert_same(run(scan, case, with_state=with_state, cu_seqlens=CU, chunk=4 * rank), want)


@pytest.mark.parametrize("chunk", [1, 4, 5, 64])
@pytest.mark.parametrize("rank", [1, 2])
def test_packed_row_cut_by_masks_equals_separate_in_values_and_every_gradient(rank, chunk):
    """The training path, which asks for no states."""
    case = packed_case(rank)
    leaves = {name: t.requires_grad_() for name, t in case.leaves().items()}
    got = mamba3_scan_chunked(**case.inputs, **case.parameters, cu_seqlens=CU, chunk=chunk * rank)
    want, _ = separately(case, mamba3_scan_reference)
    above = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=want.dtype)
    assert_close("y", got, want)
    for name, a, b in zip(
        leaves, *(torch.autograd.grad(y, list(leaves.values()), above) for y in (got, want)), strict=True
    ):
        assert_close(f"d {name}", a, b)


@pytest.mark.parametrize("states", [False, True], ids=["masks", "states"])
@pytest.mark.parametrize("scan", SCANS, ids=IDS)
def test_nothing_of_a_sequence_reaches_its_neighbours(scan, states):
    """Above all not the left weight of a first token, which belongs to no earlier key; by gradients and by bits."""
    case = packed_case(1)
    for leaf in case.inputs.values():
        leaf.requires_grad_()

    def outputs() -> torch.Tensor:
        out = scan(**case.inputs, **case.parameters, cu_seqlens=CU, return_final_state=states, chunk=4)
        return out[0] if states else out

    y = outputs()
    grads = torch.autograd.grad(y[:, 6:17].square().sum(), list(case.inputs.values()))
    for name, grad in zip(case.inputs, grads, strict=True):
        assert bool((grad[:, :6] == 0).all()), name
        assert bool((grad[:, 17:] == 0).all()), name
    with torch.no_grad():
        for leaf in case.inputs.values():
            leaf[:, :6] += 1.0
            leaf[:, 17:] -= 1.0
        assert torch.equal(outputs()[:, 6:17], y[:, 6:17])


def padded(case: Case, valid: torch.Tensor, poison: float) -> Case:
    """The case with every step that is not valid filled with `poison`."""
    for name, t in case.inputs.items():
        case.inputs[name] = torch.where(valid.view(*valid.shape, *[1] * (t.dim() - 2)), t, poison)
    return case


PADDING = {
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
    "right": [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 9],
    "inside": [[0, 1, 1, 0, 0, 1, 1, 0, 1], [1, 0, 1, 0, 1, 0, 1, 0, 1]],
    "a row of nothing": [[0] * 9, [1] * 9],
}


@pytest.mark.parametrize("with_state", [False, True], ids=["from zero", "from a state"])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("scan", SCANS, ids=IDS)
@pytest.mark.parametrize("where", PADDING)
def test_padding_full_of_nan_equals_the_row_without_it(where, scan, rank, with_state):
    """Values, states and gradients of the tokens are those of the bare row; gradients of the padding are exactly 0."""
    shape = Shape(T=9, R=rank, y_norm=True)
    valid = torch.tensor(PADDING[where]).bool()
    case = padded(make_case(shape), valid, float("nan"))
    got = run(scan, case, with_state=with_state, valid_BT=valid, chunk=4 * rank)
    for name, value in got.items():
        assert bool(value.isfinite().all()), name
        if name in ("y", *(f"d {n}" for n in case.inputs)):
            assert bool((value[~valid] == 0).all()), name

    def bare(*_, initial_state, **__):
        ys, states = torch.zeros_like(case.inputs["x_BTHP"]), []
        for row in range(shape.B):
            own = case.state if initial_state is not None else zero_like(case.state)
            own = Mamba3State(*(t[row : row + 1] for t in vars(own).values()))
            if valid[row].any():
                inputs = [t[row : row + 1, valid[row]] for t in case.inputs.values()]
                y, own = mamba3_scan_reference(*inputs, **case.parameters, initial_state=own, return_final_state=True)
                ys = ys.index_put((torch.tensor([row]), valid[row].nonzero()[:, 0]), y[0])
            states.append(own)
        return ys, Mamba3State(*(torch.cat([getattr(s, f.name) for s in states]) for f in fields(Mamba3State)))

    want = run(bare, case, with_state=with_state)
    assert_same(got, want)


def zero_like(state: Mamba3State) -> Mamba3State:
    return Mamba3State(*(torch.zeros_like(t) for t in vars(state).values()))


@pytest.mark.parametrize("states", [False, True], ids=["masks", "states"])
def test_padding_between_packed_sequences_equals_the_sequential_scan(states):
    case = packed_case(2)
    valid = torch.ones(1, 19, dtype=torch.bool)
    valid[0, [0, 5, 6, 11, 18]] = False
    want, _ = separately(case, mamba3_scan_reference, valid_BT=valid)
    out = mamba3_scan_chunked(
        **padded(case, valid, float("inf")).inputs,
        **case.parameters,
        cu_seqlens=CU,
        valid_BT=valid,
        return_final_state=states,
        chunk=8,
    )
    assert_close("y", out[0] if states else out, want)
