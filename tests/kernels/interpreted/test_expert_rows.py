"""Dot products of rows and sums of the rows of a token in Triton, interpreted: the bits of the reference."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sigma_kernels import counters
from sigma_kernels.experts import op
from sigma_kernels.experts.rows import row_dots, sum_choices
from sigma_kernels.row_tiles import FLOATS
from tests.kernels import row_cases as cases

# One element, odd widths, several tiles, a width over the tile.
SHAPES = [(1, 1), (3, 7), (65, 64), (3, 100), (65, 300), (2, 3000)]

pytestmark = pytest.mark.usefixtures("every_access_lies_in_a_tensor")


@pytest.mark.parametrize("right", FLOATS, ids=str)
@pytest.mark.parametrize("left", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dots_of_integers_are_exact_and_others_are_right_in_fp32(shape, left, right):
    a, b = cases.small_integers(*shape, dtype=left), cases.small_integers(*shape, seed=1, dtype=right)
    cases.assert_exact_dots(a, b)
    cases.assert_exact_dots(cases.inside_wider_rows(a), b)
    cases.assert_exact_dots(a, cases.inside_wider_rows(b))
    cases.assert_exact_dots(a[:1].expand(shape[0], -1), b.mT.contiguous().mT)
    cases.assert_dots(cases.normal(*shape, dtype=left), cases.normal(*shape, seed=1, dtype=right))


def test_what_is_not_finite_stays_in_its_row():
    a, b = cases.normal(5, 40), cases.normal(5, 40, seed=1)
    a[1, 3], b[3, 39] = float("nan"), float("inf")
    assert row_dots(a, b).isfinite().tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)], ids=str)
def test_nothing_has_dots_of_zero(shape):
    dots = row_dots(torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape))
    assert cases.same_bits(dots, torch.zeros(shape[0]))


@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("top_k", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_choices_have_the_bits_of_the_reference(shape, top_k, dtype, out):
    rows = shape[0] * top_k
    y, inverse = cases.normal(rows, shape[1], dtype=dtype), cases.shuffled(rows)
    factor = cases.normal(rows, seed=1)
    cases.assert_summed(y, inverse, top_k, None, out)
    cases.assert_summed(y, inverse, top_k, factor, out)
    cases.assert_summed(cases.inside_wider_rows(y), inverse, top_k, cases.normal(2 * rows, seed=1)[::2], out)
    cases.assert_summed(y[:1].expand(rows, -1), inverse.repeat_interleave(2)[::2], top_k, factor, out)


def test_choices_are_added_in_their_order():
    y, inverse = torch.tensor([[-(2.0**24)], [1.0], [2.0**24], [1.0]]), torch.tensor([2, 1, 0, 3])
    assert sum_choices(y, inverse, 4, None, torch.float32).item() == 1  # 2 if exact, 0 the other way round


@pytest.mark.parametrize("shape", [(0, 8), (4, 0)], ids=str)
def test_no_tokens_have_no_sums(shape):
    got = sum_choices(torch.zeros(shape), cases.shuffled(shape[0]), 2, torch.ones(shape[0]), torch.bfloat16)
    assert (got.shape, got.dtype) == ((shape[0] // 2, shape[1]), torch.bfloat16)


@pytest.mark.parametrize("gather, sums", [(True, 2), (False, 1)], ids=["gathered", "sorted"])
def test_a_step_counts_its_kernels(gather, sums):
    cases.expert_step(cases.normal(8, 8), torch.float32, ternary=True, gated=True, gather=gather)
    counted = counters.snapshot()
    assert counted["row_dots.use_triton"] == 1
    assert counted["sum_choices.use_triton"] == sums
    assert counted["scale_rows.use_triton"] == 2 + (not gather)


class Wide(TorchDispatchMode):
    """Notes what makes an fp32 tensor of at least so many elements."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.seen = least, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32 and out.numel() >= self.least:
            self.seen.append(str(func))
        return out


@pytest.mark.parametrize("ternary, gated", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("gather", [True, False], ids=["gathered", "sorted"])
def test_sixteen_bits_stay_sixteen_bits(gather, ternary, gated, monkeypatch):
    """With a grouped product, which returns 16 bits, no step makes a matrix of the rows in fp32."""
    monkeypatch.setattr(op, "why_not_grouped_mm", lambda *_: None)
    x = cases.normal(400, 16, dtype=torch.bfloat16)
    with Wide(least=(2 if gather else 1) * 400 * 16) as wide:
        cases.expert_step(x, torch.bfloat16, ternary=ternary, gated=gated, gather=gather, out_features=16)
    assert wide.seen == []
    assert counters.get("experts.use_grouped_mm") == 2
