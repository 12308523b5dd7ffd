"""int8 codes of rows in Triton, to the bit of `quantize_activation_reference`: each element is read and written once.

Codes may be stored in the dtype that the product will read: integers up to 127 are exact in all of them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels.bitlinear.reference import EPS
from sigma_kernels.rounding import rounded
from sigma_kernels.row_tiles import dense_rows, row_tile

FLOOR = tl.constexpr(EPS)
FULL = tl.constexpr(127.0)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # all bits of an fp32 but its sign

# The product with the scale must not be fused with the sum that rounds it to an integer.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


@triton.jit(do_not_specialize=["rows"])
def _quantize_rows_fwd_kernel(
    x_ptr, codes_ptr, scale_ptr, rows, stride_x, width, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (col < width)[None, :]
    x = tl.load(x_ptr + row[:, None] * stride_x + col[None, :], mask=mask, other=0.0).to(tl.float32)
    # bits of magnitudes are ordered as they are, with NaN above infinity; a maximum of floats would drop NaN
    largest = tl.max(x.to(tl.int32, bitcast=True) & MAGNITUDE, axis=1).to(tl.float32, bitcast=True)
    finite = largest < float("inf")
    largest = tl.where(largest < FLOOR, FLOOR, largest)
    codes = x * tl.div_rn(FULL, largest)[:, None]
    # as in the reference, where 0 * infinity and NaN become 0; no other code can leave [-127, 127]
    codes = tl.where(finite[:, None], codes, 0.0)
    codes = rounded(codes)
    tl.store(codes_ptr + row[:, None] * width + col[None, :], codes.to(codes_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + row, tl.div_rn(largest, FULL), mask=row < rows)


def launch_quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes in `dtype` (the shape of `x`) and scale (fp32, one per row)."""
    codes = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if scale.numel() > 0:
        x_rows, tile = dense_rows(x), row_tile(x.shape[-1])
        with torch.cuda.device_of(x):
            _quantize_rows_fwd_kernel[(-(-x_rows.shape[0] // tile["BLOCK_ROWS"]),)](
                x_rows, codes, scale, x_rows.shape[0], x_rows.stride(0), x_rows.shape[1], **tile, **OPTIONS
            )
    return codes, scale
