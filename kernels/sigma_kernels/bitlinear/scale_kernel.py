"""Rows times their factors in Triton, rounded once to any dtype: each element is read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels.row_tiles import dense_rows, part_grid, part_tile


@triton.jit(do_not_specialize=["rows"])
def _scale_rows_fwd_kernel(
    a_ptr, factor_ptr, out_ptr, rows, stride_a, stride_factor, width,
    BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (col < width)[None, :]
    a = tl.load(a_ptr + row[:, None] * stride_a + col[None, :], mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(factor_ptr + row * stride_factor, mask=row < rows, other=0.0)
    out = (a * factor[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None] * width + col[None, :], out, mask=mask)


def launch_scale_rows(a_MN: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`a_MN * factor` in `dtype`; `factor` is fp32, `[M]` with any stride or a scalar."""
    out = torch.empty(a_MN.shape, dtype=dtype, device=a_MN.device)
    if out.numel() > 0:
        rows, width = a_MN.shape
        dense, tile = dense_rows(a_MN), part_tile(width)
        with torch.cuda.device_of(a_MN):
            _scale_rows_fwd_kernel[part_grid(rows, width, tile)](
                dense, factor, out, rows, dense.stride(0), factor.stride(0) if factor.ndim else 0, width, **tile
            )
    return out
