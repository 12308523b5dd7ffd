"""The ReLU^2 gate in Triton, to the bit of the reference: each element is read and written once.

There are products only, taken in the order of PyTorch's autograd, hence no two roundings that a compiler could fuse.
Formulas: r = relu(g), out = r^2 u; dg = (dout u) (2 r) where r > 0, du = dout r^2. g and u are the halves of a row.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigma_kernels import counters
from sigma_kernels.row_tiles import dense_rows, part_grid, part_tile


@triton.jit
def _load_halves(up_ptr, rows, stride_up, width, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Rows, columns and mask of this program's tile, and its two halves in fp32."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (col < width)[None, :]
    gate_ptr = up_ptr + row[:, None] * stride_up + col[None, :]
    gate = tl.load(gate_ptr, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(gate_ptr + width, mask=mask, other=0.0).to(tl.float32)
    return row, col, mask, gate, value


@triton.jit(do_not_specialize=["rows"])
def _relu2_gate_fwd_kernel(
    up_ptr, out_ptr, rows, stride_up, width, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # fmt: skip
    row, col, mask, gate, value = _load_halves(up_ptr, rows, stride_up, width, BLOCK_D, BLOCK_ROWS)
    gate = tl.where(gate <= 0, 0.0, gate)  # a maximum would drop NaN
    out = gate * gate * value
    tl.store(out_ptr + row[:, None] * width + col[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _relu2_gate_bwd_kernel(
    dout_ptr, up_ptr, dup_ptr, rows, stride_dout, stride_up, width, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr
):  # fmt: skip
    row, col, mask, gate, value = _load_halves(up_ptr, rows, stride_up, width, BLOCK_D, BLOCK_ROWS)
    dout = tl.load(dout_ptr + row[:, None] * stride_dout + col[None, :], mask=mask, other=0.0).to(tl.float32)
    off = gate <= 0  # False for NaN
    gate = tl.where(off, 0.0, gate)
    # what a closed gate lets through is 0, even of infinity
    dgate = tl.where(off, 0.0, dout * value * (2 * gate))
    dvalue = dout * (gate * gate)
    dgate_ptr = dup_ptr + row[:, None] * (2 * width) + col[None, :]
    tl.store(dgate_ptr, dgate.to(dup_ptr.dtype.element_ty), mask=mask)
    tl.store(dgate_ptr + width, dvalue.to(dup_ptr.dtype.element_ty), mask=mask)


class Relu2GateFn(torch.autograd.Function):
    """`apply(up)` -> relu(g)^2 * u; keeps `up` as it came in."""

    @staticmethod
    def forward(ctx: Any, up: Tensor) -> Tensor:
        counters.add("relu2_gate.forward")
        ctx.save_for_backward(up)
        return launch_forward(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        counters.add("relu2_gate.backward")
        (up,) = ctx.saved_tensors
        return launch_backward(dout, up)


def launch_forward(up: Tensor) -> Tensor:
    """`[..., F]` in the dtype of `up` `[..., 2 F]`."""
    out = torch.empty((*up.shape[:-1], up.shape[-1] // 2), dtype=up.dtype, device=up.device)
    if out.numel() > 0:
        up_rows, width = dense_rows(up), out.shape[-1]
        rows, tile = up_rows.shape[0], part_tile(width)
        with torch.cuda.device_of(up):
            _relu2_gate_fwd_kernel[part_grid(rows, width, tile)](up_rows, out, rows, up_rows.stride(0), width, **tile)
    return out


def launch_backward(dout: Tensor, up: Tensor) -> Tensor:
    """The gradient of `up`, of its shape and dtype, dense."""
    dup = torch.empty(up.shape, dtype=up.dtype, device=up.device)
    if dup.numel() > 0:
        dout_rows, up_rows, width = dense_rows(dout), dense_rows(up), dout.shape[-1]
        rows, tile = up_rows.shape[0], part_tile(width)
        with torch.cuda.device_of(up):
            _relu2_gate_bwd_kernel[part_grid(rows, width, tile)](
                dout_rows, up_rows, dup, rows, dout_rows.stride(0), up_rows.stride(0), width, **tile
            )
    return dup
