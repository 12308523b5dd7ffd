"""The symmetric products by pointers: for every GPU, and for rows that start at any address."""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels.orthogonalise.upper import upper_tile, upper_tiles


@triton.jit
def product_by_pointers(
    x_ptr, y_ptr, out_ptr, rows, columns, stride_xb, stride_xm, stride_yb, stride_ym, stride_ob, a, b, c,
    QUADRATIC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """out = X Y^T, which must be symmetric, or with QUADRATIC a I + b X + c X Y^T; EVEN when only whole tiles exist.

    A program owns a square tile on or above the diagonal and writes it twice.
    """
    k, i, j = upper_tile(tl.program_id(0), rows, BLOCK, 1)
    x_ptr += k.to(tl.int64) * stride_xb
    y_ptr += k.to(tl.int64) * stride_yb
    out_ptr += k.to(tl.int64) * stride_ob
    row, other = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK_K)
    left_ptr = x_ptr + row[:, None].to(tl.int64) * stride_xm + inner[None, :]
    right_ptr = y_ptr + other[:, None].to(tl.int64) * stride_ym + inner[None, :]
    own_ptr = x_ptr + row[:, None].to(tl.int64) * stride_xm + other[None, :]
    direct_ptr = out_ptr + row[:, None].to(tl.int64) * rows + other[None, :]
    mirrored_ptr = out_ptr + other[:, None].to(tl.int64) * rows + row[None, :]
    inside, mirrored = (row[:, None] < rows) & (other[None, :] < rows), (other[:, None] < rows) & (row[None, :] < rows)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, columns, BLOCK_K):
        if EVEN:
            left, right = tl.load(left_ptr + start), tl.load(right_ptr + start)
        else:
            here = inner[None, :] < columns - start
            left = tl.load(left_ptr + start, mask=(row[:, None] < rows) & here, other=0.0)
            right = tl.load(right_ptr + start, mask=(other[:, None] < rows) & here, other=0.0)
        total = tl.dot(left, tl.trans(right), total)
    if QUADRATIC:
        own = tl.load(own_ptr) if EVEN else tl.load(own_ptr, mask=inside, other=0.0)
        total = c * total + b * own.to(tl.float32)
        total += tl.where(row[:, None] == other[None, :], a, 0.0)
    half = total.to(out_ptr.dtype.element_ty)
    if EVEN:
        tl.store(direct_ptr, half)
    else:
        tl.store(direct_ptr, half, mask=inside)
    if i != j:
        if EVEN:
            tl.store(mirrored_ptr, tl.trans(half))
        else:
            tl.store(mirrored_ptr, tl.trans(half), mask=mirrored)


def launch(x: Tensor, y: Tensor, out: Tensor, triple: tuple[float, float, float] | None, tile: dict[str, Any]) -> None:
    """Launch with a tile as of `tile_of`; rows of x and y are contiguous, and out is."""
    count, rows, columns = x.shape
    a, b, c = triple or (0.0, 0.0, 1.0)
    product_by_pointers[(count * upper_tiles(rows, tile["BLOCK"], 1),)](
        x, y, out, rows, columns, x.stride(0), x.stride(1), y.stride(0), y.stride(1), out.stride(0), a, b, c,
        QUADRATIC=triple is not None, EVEN=rows % tile["BLOCK"] == 0 and columns % tile["BLOCK_K"] == 0, **tile,
    )  # fmt: skip
