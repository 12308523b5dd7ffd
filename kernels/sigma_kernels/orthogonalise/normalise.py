"""The division of each matrix by its norm in Triton: two passes, the second turns what is tall."""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels import counters
from sigma_kernels.matrix_step.row_squares_kernel import squares_along_rows
from sigma_kernels.orthogonalise.reference import SAFETY, SAFETY_EPS

BAND, STEP = 16, 256  # rows and columns that a program squares at a time
TILE = 64


@triton.jit
def _squares_kernel(x_ptr, sum_ptr, rows, columns, stride_b, stride_m, BAND: tl.constexpr, STEP: tl.constexpr):
    """The sum of squares of each band of rows, in fp32."""
    bands = tl.cdiv(rows, BAND)
    k, band = tl.program_id(0) // bands, tl.program_id(0) % bands
    row = band * BAND + tl.arange(0, BAND)
    total = squares_along_rows(x_ptr + k.to(tl.int64) * stride_b, row, rows, columns, stride_m, 1, STEP, 1)
    tl.store(sum_ptr + tl.program_id(0), tl.sum(total))


@triton.jit
def _scale_kernel(
    x_ptr, sum_ptr, out_ptr, rows, columns, stride_b, stride_m, bands, safety, eps,
    BANDS: tl.constexpr, TILE: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """A tile of x / (norm * safety + eps), of the transposed matrix with TURNED; a zero matrix stays zero."""
    down, across = tl.cdiv(rows, TILE), tl.cdiv(columns, TILE)
    k, tile = tl.program_id(0) // (down * across), tl.program_id(0) % (down * across)
    row, column = tile // across * TILE + tl.arange(0, TILE), tile % across * TILE + tl.arange(0, TILE)
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    x_ptr += k.to(tl.int64) * stride_b
    x = tl.load(x_ptr + row[:, None].to(tl.int64) * stride_m + column[None, :], mask=inside, other=0.0)
    band = tl.arange(0, BANDS)
    norm = tl.sqrt(tl.sum(tl.load(sum_ptr + k * bands + band, mask=band < bands, other=0.0)))
    scaled = (x.to(tl.float32) * (1 / (norm * safety + eps))).to(out_ptr.dtype.element_ty)
    out_ptr += k.to(tl.int64) * rows * columns
    if TURNED:
        inside = (column[:, None] < columns) & (row[None, :] < rows)
        tl.store(out_ptr + column[:, None].to(tl.int64) * rows + row[None, :], tl.trans(scaled), mask=inside)
    else:
        tl.store(out_ptr + row[:, None].to(tl.int64) * columns + column[None, :], scaled, mask=inside)


def normalised_wide_triton(x_KMN: Tensor, dtype: torch.dtype) -> Tensor:
    """`[K, s, l]` contiguous with s <= l: as `reference.normalised_wide`, up to the order of the sum."""
    if 1 not in x_KMN.stride()[1:]:
        x_KMN = x_KMN.contiguous()
    tall = x_KMN.shape[1] > x_KMN.shape[2]
    read = x_KMN if x_KMN.stride(2) == 1 else x_KMN.mT  # rows are contiguous
    turned = tall == (read is x_KMN)
    count, rows, columns = read.shape
    bands = -(-rows // BAND)
    sums = torch.empty(count * bands, dtype=torch.float32, device=read.device)
    height, width = (columns, rows) if turned else (rows, columns)
    out = torch.empty((count, height, width), dtype=dtype, device=read.device)
    counters.add("orthogonalise.normalised")
    size = rows, columns, read.stride(0), read.stride(1)
    with torch.cuda.device_of(read):
        _squares_kernel[(count * bands,)](read, sums, *size, BAND=BAND, STEP=STEP)
        _scale_kernel[(count * -(-rows // TILE) * -(-columns // TILE),)](
            read, sums, out, *size, bands, SAFETY, SAFETY_EPS,
            BANDS=triton.next_power_of_2(bands), TILE=TILE, TURNED=turned,
        )  # fmt: skip
    return out
