"""The row kernels on a GPU: the bits of the reference there and on the CPU, alone and in the ternary products."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.bitlinear.op import quantize_activation, scale_rows
from sigma_kernels.row_tiles import FLOATS, WIDEST
from tests.kernels import row_cases as cases

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_backend")]

SHAPES = [(1, 1), (3, 7), (65, 100), (65, 300), (999, 2048), (33, WIDEST)]


@pytest.mark.parametrize("codes", [torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_scales_have_the_bits_of_the_reference(shape, dtype, codes):
    cases.assert_codes(cases.normal(*shape, dtype=dtype).cuda(), codes)


@pytest.mark.parametrize("codes", [torch.int8, torch.bfloat16], ids=str)
def test_codes_of_a_layer_have_the_bits_of_the_reference(codes):
    """A rounding fused with the product before it would change 1,561 of these codes."""
    cases.assert_codes(cases.normal(4096, 768, dtype=torch.bfloat16).cuda(), codes)


@pytest.mark.parametrize("codes", [torch.int8, *FLOATS], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [7, 64, 300, 2048])
def test_ties_zeros_tiny_rows_and_what_is_not_finite_have_the_bits_of_the_reference(width, dtype, codes):
    cases.assert_codes(cases.special_rows(width, dtype).cuda(), codes)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [33, 256])
def test_rows_inside_wider_ones_are_read_in_place(width, dtype):
    cases.assert_codes(cases.inside_wider_rows(cases.normal(65, width, dtype=dtype).cuda()), torch.bfloat16)


@pytest.mark.parametrize("out", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 768)], ids=str)
def test_scaled_rows_have_the_bits_of_the_reference(shape, dtype, out):
    a = cases.normal(*shape, dtype=dtype)
    for factor in (cases.normal(shape[0], seed=1), torch.tensor(0.3)):
        for rows in (a.cuda(), cases.inside_wider_rows(a.cuda()), a.cuda()[:1].expand(shape[0], -1)):
            cases.assert_scaled(rows, factor.cuda(), out)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (3, 7, 100), (4, 1000, 256)], ids=str)
def test_a_ternary_product_and_its_gradients_have_the_bits_of_the_eager_way(shape, dtype, compute):
    x = cases.normal(*shape, dtype=dtype).cuda()
    results = cases.product_step(x, compute, out_features=384)
    dispatch.set_backend("reference")
    for got, want in zip(results, cases.product_step(x, compute, out_features=384), strict=True):
        assert cases.same_bits(got, want)


def test_elements_beyond_two_to_the_31st_are_reached():
    """Offsets in 32 bits would wrap here: 2^31 elements and one row more."""
    x = torch.zeros(2**31 // WIDEST + 1, WIDEST, dtype=torch.bfloat16, device="cuda")
    x[-1] = 3.0
    codes, scale = quantize_activation(x)
    assert bool((codes[-1] == 127).all())
    assert not bool(codes[0].any())
    back = scale_rows(x, scale, torch.bfloat16)
    assert bool((back[-1] == (3.0 * scale[-1]).bfloat16()).all())


def test_no_rows_launch_nothing():
    codes, scale = quantize_activation(torch.zeros(0, 8, device="cuda"), torch.bfloat16)
    assert (codes.shape, scale.shape) == ((0, 8), (0,))
    assert scale_rows(codes, scale, torch.float32).shape == (0, 8)


def test_the_kernels_ran_and_not_the_reference():
    before = counters.get("quantize_rows.use_triton"), counters.get("scale_rows.use_triton")
    cases.product_step(cases.normal(5, 8).cuda(), torch.bfloat16)
    after = counters.get("quantize_rows.use_triton"), counters.get("scale_rows.use_triton")
    assert after == (before[0] + 2, before[1] + 3)
