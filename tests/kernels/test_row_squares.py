"""Squares of rows by the reference, which matrices the kernel takes, and that it compiles."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.matrix_step.op import row_squares
from tests.kernels.compile_only import EVERY_CAPABILITY, compile_kernel
from tests.kernels.matrix_step_cases import exact_squares, rows_in_layout
from tests.kernels.tolerance import assert_close


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "every second"])
def test_squares_of_rows_by_the_reference_are_torchs_norms_squared_and_counted(layout, dtype):
    x = rows_in_layout(layout, 3, 5, 33, dtype=dtype)
    got = row_squares(x)
    assert torch.equal(got, torch.linalg.vector_norm(x, dim=2, dtype=torch.float32).square())
    assert_close("squares", got, exact_squares(x))
    assert counters.snapshot() == {"matrix_step.row_squares": 1, "matrix_step.use_reference": 1}


def test_a_layout_that_the_kernel_does_not_take_goes_to_the_reference_and_is_reported(monkeypatch):
    monkeypatch.setattr(dispatch, "why_not_triton", lambda *_: None)  # as on a GPU
    x = rows_in_layout("every second", 2, 5, 7)
    assert_close("squares", row_squares(x), exact_squares(x))
    assert dispatch.report()["matrix_step"] == "neither rows nor columns are contiguous"
    assert counters.get("matrix_step.use_reference") == 1


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 4), torch.zeros(2, 0, 4), torch.zeros(1, 3, 4).double(), torch.zeros(1, 3, 4).int()],
    ids=["a matrix", "no rows", "fp64", "int"],
)  # fmt: skip
def test_what_is_no_batch_of_small_floats_has_no_squares(x):
    with pytest.raises(ValueError, match="batch of fp32, bf16 or fp16"):
        row_squares(x)


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("dtype", ["*fp16", "*bf16"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_squares_of_rows_load_16_bytes_a_thread_at_full_occupancy_and_spill_nothing(layout, dtype, capability):
    kernel = pytest.importorskip("sigma_kernels.matrix_step.row_squares_kernel", exc_type=ImportError)
    # the stride 1 is a constant to Triton
    tile = {**kernel.BY_ROWS, "stride_n": 1} if layout == "rows" else {**kernel.BY_COLUMNS, "stride_m": 1}
    types = [dtype, "*fp32", *["i32:16"] * 4]
    usage = compile_kernel(kernel._row_squares_kernel, types, capability=capability, **tile)
    assert usage.spilled_bytes == 0
    assert usage.registers <= 40
    assert usage.load_bytes == 16
