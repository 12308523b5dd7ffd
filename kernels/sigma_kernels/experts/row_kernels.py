"""Dot products of rows, and sums of the rows of each token, in Triton: each element is read once. No atomics."""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels.row_tiles import dense_rows, part_grid, part_tile

# A product with a factor is rounded before it is added, as in the reference.
SUM_OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


@triton.jit(do_not_specialize=["rows"])
def _row_dots_fwd_kernel(
    a_ptr, b_ptr, out_ptr, rows, stride_a, stride_b, width, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_D)
    a_ptr += row[:, None] * stride_a + col[None, :]
    b_ptr += row[:, None] * stride_b + col[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    for start in range(0, width, BLOCK_D):
        mask = (row < rows)[:, None] & (col < width - start)[None, :]
        a = tl.load(a_ptr + start, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + start, mask=mask, other=0.0).to(tl.float32)
        total += a * b
    tl.store(out_ptr + row, tl.sum(total, axis=1), mask=row < rows)


@triton.jit(do_not_specialize=["tokens"])
def _sum_choices_fwd_kernel(
    y_ptr, inverse_ptr, factor_ptr, out_ptr, tokens, stride_y, width,
    TOP_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (token < tokens)[:, None] & (col < width)[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    for k in range(TOP_K):
        row = tl.load(inverse_ptr + token * TOP_K + k, mask=token < tokens, other=0).to(tl.int64)
        y = tl.load(y_ptr + row[:, None] * stride_y + col[None, :], mask=mask, other=0.0).to(tl.float32)
        if factor_ptr is not None:
            y *= tl.load(factor_ptr + row, mask=token < tokens, other=0.0)[:, None]
        total += y
    tl.store(out_ptr + token[:, None] * width + col[None, :], total.to(out_ptr.dtype.element_ty), mask=mask)


def launch_row_dots(a_MN: Tensor, b_MN: Tensor) -> Tensor:
    """See `rows.row_dots`."""
    rows, width = a_MN.shape
    out = torch.empty(rows, dtype=torch.float32, device=a_MN.device)
    if width == 0:
        return out.zero_()
    if rows > 0:
        a, b, tile = dense_rows(a_MN), dense_rows(b_MN), part_tile(width)
        with torch.cuda.device_of(a):
            _row_dots_fwd_kernel[(-(-rows // tile["BLOCK_ROWS"]),)](
                a, b, out, rows, a.stride(0), b.stride(0), width, **tile
            )
    return out


def launch_sum_choices(
    y_MD: Tensor, inverse_M: Tensor, top_k: int, factor_M: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See `rows.sum_choices`."""
    tokens, width = inverse_M.numel() // top_k, y_MD.shape[1]
    out = torch.empty(tokens, width, dtype=dtype, device=y_MD.device)
    if out.numel() > 0:
        y, tile = dense_rows(y_MD), part_tile(width)
        factor = None if factor_M is None else factor_M.contiguous()
        with torch.cuda.device_of(y):
            _sum_choices_fwd_kernel[part_grid(tokens, width, tile)](
                y, inverse_M.contiguous(), factor, out, tokens, y.stride(0), width, TOP_K=top_k, **tile, **SUM_OPTIONS
            )
    return out
