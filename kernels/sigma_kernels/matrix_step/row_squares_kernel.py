"""The sum of squares of each row in Triton: one read of a batch of matrices whose rows or columns are contiguous.

A program owns a few rows and walks along them, with loads of 16 bytes along the contiguous axis. Sums stay in the
thread that loaded their elements until the end of the rows. No atomics; the same bits in every run.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# One 16-byte load of a 16-bit type for each thread and tile. UNROLL tiles may be in flight without as many sums, which
# keeps a thread within 32 registers and a multiprocessor full. A warp takes a row: the sum needs no shared memory.
BY_ROWS: dict[str, Any] = {"BLOCK_M": 4, "BLOCK_N": 256, "UNROLL": 4, "num_warps": 4}
# 64 rows of a 16-bit type are the 128 bytes of a cache line, and a warp takes four columns of them. Tall batches have
# few such blocks of rows, which is why a program has many warps.
BY_COLUMNS: dict[str, Any] = {"BLOCK_M": 64, "BLOCK_N": 64, "UNROLL": 4, "num_warps": 16}


@triton.jit
def squares_along_rows(
    x_ptr, row, rows, columns, stride_m, stride_n, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr
):  # fmt: skip
    """fp32 `[len(row), BLOCK_N]`, whose sums over the second axis are the squares of the rows `row` of the matrix."""
    column = tl.arange(0, BLOCK_N)
    x_ptr += row[:, None].to(tl.int64) * stride_m + column[None, :].to(tl.int64) * stride_n
    total = tl.zeros((row.shape[0], BLOCK_N), tl.float32)
    for start in range(0, columns, BLOCK_N * UNROLL):
        for part in tl.static_range(UNROLL):
            first = start + part * BLOCK_N
            inside = (row[:, None] < rows) & (column[None, :] < columns - first)
            x = tl.load(x_ptr + tl.cast(first, tl.int64) * stride_n, mask=inside, other=0.0).to(tl.float32)
            total += x * x
    return total


@triton.jit
def _row_squares_kernel(
    x_ptr, out_ptr, rows, columns, stride_b, stride_m, stride_n,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(rows, BLOCK_M)
    k, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    total = squares_along_rows(x_ptr + k * stride_b, row, rows, columns, stride_m, stride_n, BLOCK_N, UNROLL)
    tl.store(out_ptr + k * rows + row, tl.sum(total, axis=1), mask=row < rows)


def launch_row_squares(x_KMN: Tensor) -> Tensor:
    """See `op.row_squares`; one of the last two axes of x has stride 1."""
    count, rows, columns = x_KMN.shape
    tile = BY_ROWS if x_KMN.stride(2) == 1 else BY_COLUMNS
    out_KM = torch.empty((count, rows), dtype=torch.float32, device=x_KMN.device)
    with torch.cuda.device_of(x_KMN):
        _row_squares_kernel[(count * -(-rows // tile["BLOCK_M"]),)](
            x_KMN, out_KM, rows, columns, *x_KMN.stride(), **tile
        )
    return out_KM
