"""Dot products of rows and sums of the rows of a token on a GPU, alone and in the products with experts."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.experts.rows import row_dots, sum_choices
from sigma_kernels.row_tiles import FLOATS, WIDEST
from tests.kernels import row_cases as cases

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_backend")]

SHAPES = [(1, 1), (3, 7), (65, 100), (65, 300), (999, 2048), (33, WIDEST)]


@pytest.mark.parametrize("right", FLOATS, ids=str)
@pytest.mark.parametrize("left", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 256)], ids=str)
def test_dots_of_integers_are_exact_and_others_are_right_in_fp32(shape, left, right):
    a, b = cases.small_integers(*shape, dtype=left).cuda(), cases.small_integers(*shape, seed=1, dtype=right).cuda()
    cases.assert_exact_dots(a, b)
    cases.assert_exact_dots(cases.inside_wider_rows(a), cases.inside_wider_rows(b))
    a, b = cases.normal(*shape, dtype=left).cuda(), cases.normal(*shape, seed=1, dtype=right).cuda()
    cases.assert_dots(a, b)
    assert cases.same_bits(row_dots(a, b), row_dots(a, b))


@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("top_k", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 256)], ids=str)
def test_sums_of_choices_have_the_bits_of_the_reference(shape, top_k, dtype, out):
    rows = shape[0] * top_k
    y, inverse = cases.normal(rows, shape[1], dtype=dtype).cuda(), cases.shuffled(rows).cuda()
    for factor in (None, cases.normal(rows, seed=1).cuda()):
        cases.assert_summed(y, inverse, top_k, factor, out)
    cases.assert_summed(cases.inside_wider_rows(y), inverse, top_k, None, out)


@pytest.mark.parametrize("ternary, gated", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("gather", [True, False], ids=["gathered", "sorted"])
def test_products_with_experts_and_their_gradients_have_the_bits_of_the_eager_way(monkeypatch, gather, ternary, gated):
    """Not by the backend, which decides about the grouped product too."""
    x, how = cases.normal(1000, 256).cuda(), {"ternary": ternary, "gated": gated, "gather": gather}
    results = cases.expert_step(x, torch.bfloat16, **how, out_features=384)
    monkeypatch.setattr(dispatch, "use_triton", lambda *_, **__: False)
    cases.assert_same_step(results, cases.expert_step(x, torch.bfloat16, **how, out_features=384), gated=gated)


def test_elements_beyond_two_to_the_31st_are_reached():
    """Offsets in 32 bits would wrap here: 2^31 elements and two rows more."""
    y = torch.zeros(2**31 // WIDEST + 2, WIDEST, dtype=torch.bfloat16, device="cuda")
    y[-1] = 3.0
    dots = row_dots(y, y)
    assert dots[-1].item() == 9 * WIDEST
    assert not bool(dots[:-1].any())
    sums = sum_choices(y, torch.arange(y.shape[0], device="cuda"), 2, None, torch.bfloat16)
    assert bool((sums[-1] == 3).all())
    assert not bool(sums[:-1].any())


def test_no_rows_launch_nothing():
    nothing = torch.zeros(0, 8, device="cuda")
    assert row_dots(nothing, nothing).shape == (0,)
    assert sum_choices(nothing, torch.zeros(0, dtype=torch.int64, device="cuda"), 2, None, nothing.dtype).shape == (
        0,
        8,
    )


def test_the_kernels_ran_and_not_the_reference():
    before = counters.get("row_dots.use_triton"), counters.get("sum_choices.use_triton")
    cases.expert_step(cases.normal(5, 8).cuda(), torch.bfloat16, ternary=True, gated=True)
    after = counters.get("row_dots.use_triton"), counters.get("sum_choices.use_triton")
    assert after == (before[0] + 1, before[1] + 2)
