"""Codes of rows and rows times factors in Triton, interpreted: the bits of the reference, alone and in the products."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.bitlinear.op import quantize_activation, scale_rows
from sigma_kernels.row_tiles import FLOATS
from tests.kernels import row_cases as cases

# One element, odd widths, several tiles, a width over the tile.
SHAPES = [(1, 1), (3, 7), (65, 64), (3, 100), (65, 300), (2, 3000)]

pytestmark = pytest.mark.usefixtures("every_access_lies_in_a_tensor")


@pytest.mark.parametrize("codes", [torch.int8, *FLOATS], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_scales_have_the_bits_of_the_reference(shape, dtype, codes):
    cases.assert_codes(cases.normal(*shape, dtype=dtype), codes)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, which interprets
@pytest.mark.parametrize("codes", [torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [7, 64, 300])
def test_ties_zeros_tiny_rows_and_what_is_not_finite_have_the_bits_of_the_reference(width, dtype, codes):
    x = cases.special_rows(width, dtype)
    cases.assert_codes(x, codes)
    got, scale = quantize_activation(x, codes)
    assert scale.isfinite().tolist() == [True] * 5 + [False] * 3 + [True]
    assert scale[0] == 1
    assert got[8, 1] == 64


def test_ties_round_to_even():
    codes, scale = quantize_activation(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]]))
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2]]
    assert scale.tolist() == [1]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rows_inside_wider_ones_and_turned_ones_have_the_same_bits(dtype):
    x = cases.normal(5, 33, dtype=dtype)
    cases.assert_codes(cases.inside_wider_rows(x), torch.int8)
    cases.assert_codes(x.mT, torch.bfloat16)
    cases.assert_codes(x[:1].expand(4, -1), torch.bfloat16)
    cases.assert_codes(cases.normal(2, 3, 33, dtype=dtype), torch.int8)


@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scaled_rows_have_the_bits_of_the_reference(shape, dtype, out):
    a = cases.normal(*shape, dtype=dtype)
    for factor in (cases.normal(shape[0], seed=1), cases.normal(2 * shape[0], seed=1)[::2], torch.tensor(0.3)):
        for rows in (a, cases.inside_wider_rows(a), a[:1].expand(shape[0], -1)):
            cases.assert_scaled(rows, factor, out)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_no_rows_have_no_codes(shape):
    codes, scale = quantize_activation(torch.zeros(shape), torch.bfloat16)
    assert (codes.shape, codes.dtype, scale.shape) == (shape, torch.bfloat16, shape[:-1])


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)], ids=str)
def test_nothing_times_factors_is_nothing(shape):
    assert scale_rows(torch.zeros(shape), torch.ones(shape[0]), torch.bfloat16).shape == shape


def by_both_ways(step):
    got = step()
    assert counters.get("scale_rows.use_triton") > 0
    assert not any(name.endswith("use_reference") for name in counters.snapshot())
    dispatch.set_backend("reference")
    return got, step()


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 7), (2, 33, 40), (0, 8)], ids=str)
def test_a_ternary_product_and_its_gradients_have_the_bits_of_the_eager_way(shape, dtype, compute):
    x = cases.normal(*shape, dtype=dtype)
    for got, want in zip(*by_both_ways(lambda: cases.product_step(x, compute)), strict=True):
        assert cases.same_bits(got, want)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ternary, gated", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("gather", [True, False], ids=["gathered", "sorted"])
def test_products_with_experts_and_their_gradients_have_the_bits_of_the_eager_way(gather, ternary, gated, compute):
    x = cases.normal(66, 40)
    how = {"ternary": ternary, "gated": gated, "gather": gather}
    cases.assert_same_step(*by_both_ways(lambda: cases.expert_step(x, compute, **how)), gated=gated)


def test_a_step_counts_its_kernels():
    cases.product_step(cases.normal(3, 8), torch.bfloat16)
    assert counters.snapshot() == {
        "bitlinear.backward": 1, "bitlinear.forward": 1, "bitlinear.quantize_weight": 1,
        "quantize_rows.use_triton": 2, "scale_rows.use_triton": 3,
    }  # fmt: skip
