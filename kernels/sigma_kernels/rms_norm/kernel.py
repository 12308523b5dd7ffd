"""RMSNorm in Triton. A program holds whole rows in registers, so each pass reads and writes every element once.

Forward: one tile of rows per program. Backward: a fixed number of programs walk over the tiles, so that each keeps its
part of dweight in registers; the parts are then summed in a fixed order. No atomics: the same bits in every run.
Formulas: h = x + residual, r = rsqrt(mean(h^2) + eps), n = h r, y = n w;
          g = dy w, dh = r (g - n mean(g n)) + dsum, dw = sum over rows of dy n.
"""

from __future__ import annotations

from functools import cache
from typing import Any, overload

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigma_kernels import counters, dispatch
from sigma_kernels.row_tiles import dense_rows, row_tile

# Resident warps per multiprocessor in the backward, which allows each thread 128 registers.
BACKWARD_WARPS = 16


@triton.jit
def _rms_norm_fwd_kernel(
    x_ptr, residual_ptr, weight_ptr, y_ptr, sum_ptr, rstd_ptr, rows, stride_x, stride_residual, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (col < D)[None, :]
    out = row[:, None] * D + col[None, :]
    h = tl.load(x_ptr + row[:, None] * stride_x + col[None, :], mask=mask, other=0.0).to(ACC)
    if residual_ptr is not None:
        h += tl.load(residual_ptr + row[:, None] * stride_residual + col[None, :], mask=mask, other=0.0).to(ACC)
        # the norm must see the sum that the backward will load again
        stored = h.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + out, stored, mask=mask)
        h = stored.to(ACC)
    rstd = tl.rsqrt(tl.sum(h * h, axis=1) / D + eps)
    y = h * rstd[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + col, mask=col < D, other=0.0).to(ACC)[None, :]
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit
def _rms_norm_bwd_kernel(
    dy_ptr, dsum_ptr, h_ptr, weight_ptr, rstd_ptr, dh_ptr, dweight_ptr, rows, stride_dy, stride_dsum, stride_h,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK_D)
    dweight = tl.zeros((BLOCK_ROWS, BLOCK_D), ACC)
    for first in range(tl.program_id(0) * BLOCK_ROWS, rows, tl.num_programs(0) * BLOCK_ROWS):
        row = tl.cast(first, tl.int64) + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & (col < D)[None, :]
        dy = tl.load(dy_ptr + row[:, None] * stride_dy + col[None, :], mask=mask, other=0.0).to(ACC)
        h = tl.load(h_ptr + row[:, None] * stride_h + col[None, :], mask=mask, other=0.0).to(ACC)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)[:, None]
        normed = h * rstd
        if dweight_ptr is not None:
            dweight += dy * normed
        if weight_ptr is not None:  # read again for each tile: it is in the cache, and kept in registers it spills
            dy *= tl.load(weight_ptr + col, mask=col < D, other=0.0).to(ACC)[None, :]
        dh = rstd * (dy - normed * (tl.sum(dy * normed, axis=1) / D)[:, None])
        if dsum_ptr is not None:
            dh += tl.load(dsum_ptr + row[:, None] * stride_dsum + col[None, :], mask=mask, other=0.0).to(ACC)
        tl.store(dh_ptr + row[:, None] * D + col[None, :], dh.to(dh_ptr.dtype.element_ty), mask=mask)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + tl.program_id(0).to(tl.int64) * D + col, tl.sum(dweight, axis=0), mask=col < D)


class RmsNormFn(torch.autograd.Function):
    """`apply(x, weight, residual, eps)` -> (y, x + residual), or (y, None) without a residual."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor | None]:
        counters.add("rms_norm.forward")
        y, total, rstd = launch_forward(x, weight, residual, eps)
        ctx.save_for_backward(x if total is None else total, weight, rstd)
        ctx.dtypes = x.dtype, None if residual is None else residual.dtype
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None) -> tuple[Tensor | None, ...]:
        counters.add("rms_norm.backward")
        h, weight, rstd = ctx.saved_tensors
        x_dtype, residual_dtype = ctx.dtypes
        if dy is None:  # only the sum was used
            dh, dweight = dsum, None
        else:
            dh, dweight = launch_backward(dy, dsum, h, weight, rstd, want_dweight=ctx.needs_input_grad[1])
        dx = None if dh is None else dh.to(x_dtype)
        dresidual = None if dh is None or residual_dtype is None else dh.to(residual_dtype)
        return dx, dweight, dresidual, None


def launch_forward(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(y, x + residual or None, one rstd per row)."""
    x_rows, residual_rows = _rows(x), _rows(residual)
    rows = x_rows.shape[0]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None
    if residual is not None:
        total = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype), device=x.device)
    rstd_dtype = torch.promote_types(x.dtype if total is None else total.dtype, torch.float32)
    rstd = torch.empty(rows, dtype=rstd_dtype, device=x.device)
    tile = tile_of(x.shape[-1], rstd_dtype)
    if rows > 0:
        with torch.cuda.device_of(x):
            _rms_norm_fwd_kernel[(-(-rows // tile["BLOCK_ROWS"]),)](
                x_rows, residual_rows, _dense(weight), y, total, rstd, rows,
                x_rows.stride(0), _stride(residual_rows), eps, **tile,
            )  # fmt: skip
    return y, total, rstd


def launch_backward(
    dy: Tensor, dsum: Tensor | None, h: Tensor, weight: Tensor | None, rstd: Tensor, *, want_dweight: bool
) -> tuple[Tensor, Tensor | None]:
    """(the gradient of h, the gradient of weight or None)."""
    width, rows = h.shape[-1], rstd.shape[0]
    tile = tile_of(width, rstd.dtype)
    programs = min(-(-rows // tile["BLOCK_ROWS"]), _resident_programs(h.device, tile["num_warps"]))
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    parts = torch.empty((programs, width), dtype=rstd.dtype, device=h.device) if want_dweight else None
    dy_rows, dsum_rows, h_rows = _rows(dy), _rows(dsum), _rows(h)
    if rows > 0:
        with torch.cuda.device_of(h):
            _rms_norm_bwd_kernel[(programs,)](
                dy_rows, dsum_rows, h_rows, _dense(weight), rstd, dh, parts, rows,
                dy_rows.stride(0), _stride(dsum_rows), h_rows.stride(0), **tile,
            )  # fmt: skip
    if parts is None or weight is None:
        return dh, None
    return dh, parts.sum(dim=0).to(weight.dtype)


def tile_of(width: int, statistics: torch.dtype) -> dict[str, Any]:
    """The compile-time arguments for rows of `width` elements."""
    return row_tile(width) | {"D": width, "ACC": tl.float64 if statistics == torch.float64 else tl.float32}


@overload
def _rows(tensor: Tensor) -> Tensor: ...
@overload
def _rows(tensor: Tensor | None) -> Tensor | None: ...
def _rows(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else dense_rows(tensor)


def _stride(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)


def _dense(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.contiguous()


@cache
def _resident_programs(device: torch.device, warps: int) -> int:
    """How many programs of the backward share the tiles; in the interpreter so few that each gets several."""
    if dispatch.interpreting():
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count * (BACKWARD_WARPS // warps)
