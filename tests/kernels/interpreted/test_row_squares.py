"""Squares of rows in Triton, interpreted, against fp64."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.matrix_step import row_squares_kernel
from sigma_kernels.matrix_step.op import row_squares
from tests.kernels.matrix_step_cases import draw, exact_squares, rows_in_layout
from tests.kernels.tolerance import assert_close

pytestmark = pytest.mark.usefixtures("every_access_lies_in_a_tensor")

# one element, n = 1, one row, blocks that are just full, and more than a turn of either walk (1024 and 256 columns)
SHAPES = [(1, 1, 1), (3, 70, 1), (1, 1, 7), (3, 5, 33), (1, 64, 256), (2, 67, 259), (1, 5, 1100)]
LAYOUTS = ["rows", "columns"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_squares_of_rows_are_exact_up_to_the_rounding_of_their_sum(layout, shape, dtype):
    x = rows_in_layout(layout, *shape, dtype=dtype)
    got = row_squares(x)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert_close("squares", got, exact_squares(x))
    assert counters.snapshot() == {"matrix_step.row_squares": 1, "matrix_step.use_triton": 1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_zeros_have_the_square_zero_and_disturb_no_other(layout):
    x = rows_in_layout(layout, 2, 66, 40)
    before = row_squares(x)
    x[:, ::3] = 0
    before[:, ::3] = 0
    assert torch.equal(row_squares(x), before)


def test_the_square_of_a_matrix_in_both_layouts_and_in_a_batch_is_the_same():
    x = rows_in_layout("rows", 3, 20, 300)
    torch.testing.assert_close(row_squares(x), row_squares(x.mT.contiguous().mT), rtol=1e-6, atol=0)
    assert torch.equal(row_squares(x)[1:2], row_squares(x[1:2]))
    assert torch.equal(row_squares(x[::2]), row_squares(x)[::2])


def test_squares_that_fp16_cannot_hold_are_right():
    x = draw(1, 3, 300, seed=1).half()
    for scale in (2.0**-10, 2.0**12):
        assert_close("squares", row_squares(x * scale), exact_squares(x * scale))


def test_rows_that_no_kernel_takes_are_refused_where_the_kernel_is_demanded():
    with pytest.raises(dispatch.BackendError, match="neither rows nor columns"):
        row_squares(rows_in_layout("every second", 2, 5, 7))


@pytest.mark.parametrize("layout, other", [("rows", "BY_COLUMNS"), ("columns", "BY_ROWS")])
def test_each_layout_has_its_tile(layout, other, monkeypatch):
    monkeypatch.setattr(row_squares_kernel, other, None)
    x = rows_in_layout(layout, 2, 5, 7)
    assert_close("squares", row_squares(x), exact_squares(x))
