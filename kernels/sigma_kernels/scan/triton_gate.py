"""What stands behind Y, backward: the gradient that reaches Y through combination, gate and norm, and theirs."""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import sigmoid, sigmoid_for_16_bits
from sigma_kernels.scan.prepare import NORM_EPS
from sigma_kernels.scan.triton_tiles import (
    once,
    rank_sums,
    rank_vectors,
    rounded_over_ranks,
    times_rank_vector,
    value_rows,
)

EPS = tl.constexpr(NORM_EPS)


@triton.jit
def _dout_rows(dout_ptr, first, row, rank, head, inside, H, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """Rows of the output's gradient [B, T, H, P], fp32."""
    at = dout_ptr + (first * H + head) * P
    return value_rows(at, None, row, rank, head, inside, H * P, 0, P, R, BLOCK_P).to(tl.float32)


@triton.jit
def gate_rows(
    z_ptr, expand_z_ptr, row, rank, head, inside, stride_t, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr
):
    """(z, z times the rank's vector, its sigmoid), fp32 rows."""
    z = value_rows(z_ptr, None, row, rank, head, inside, stride_t, 0, P, R, BLOCK_P).to(tl.float32)
    gate = times_rank_vector(z, expand_z_ptr, rank, head, P, R, BLOCK_P)
    if z_ptr.dtype.element_ty.primitive_bitwidth == 16:
        open_ = sigmoid_for_16_bits(gate)
    else:
        open_ = sigmoid(gate)
    return z, gate, once(open_)


@triton.jit
def gradient_rows(
    dout_ptr, z_ptr, expand_z_ptr, combine_ptr, first, row, rank, head, inside, H, stride_t,
    P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The output's gradient taken through combination and gate, fp32 rows; `first` counts steps of all B * T."""
    _, gate, open_ = gate_rows(z_ptr, expand_z_ptr, row, rank, head, inside, stride_t, P, R, BLOCK_P)
    dout = _dout_rows(dout_ptr, first, row, rank, head, inside, H, P, R, BLOCK_P)
    return times_rank_vector(dout, combine_ptr, rank, head, P, R, BLOCK_P) * gate * open_


@triton.jit
def dy_rows(dy_ptr, first, row, rank, head, inside, H, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """Rows of dY [B, T, R, H, P] from the step `first` of all B * T steps on."""
    at = dy_ptr + (first * R * H + head) * P
    return value_rows(at, None, row, rank, head, inside, R * H * P, H * P, P, R, BLOCK_P)


@triton.jit
def store_dy_rows(
    dy_ptr, dy, first, row, rank, head, inside, H, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr
):
    """`dy_rows`, the other way."""
    p = tl.arange(0, BLOCK_P)
    at = dy_ptr + (first * R * H + head) * P + ((row * R + rank) * H)[:, None] * P + p[None, :]
    tl.store(at, dy, mask=inside[:, None] & (p < P)[None, :])


@triton.jit
def store_gate_gradients(
    y, dout_ptr, z_ptr, expand_z_ptr, combine_ptr, dz_ptr, dexpand_z_ptr, dcombine_ptr, first, partial, row, rank, t,
    head, inside, here, H, stride_t,
    P: tl.constexpr, R: tl.constexpr, STEPS: tl.constexpr, RANK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dz of the steps `t` [B, T, H, P]; and the program's part of d combine and d expand_z, [., H, R, P].

    `y` is what the gate multiplies, fp32 rows. Returns the gradient of y.
    """
    EXACT: tl.constexpr = z_ptr.dtype.element_ty == tl.float32
    z, gate, open_ = gate_rows(z_ptr, expand_z_ptr, row, rank, head, inside, stride_t, P, R, BLOCK_P)
    dout = _dout_rows(dout_ptr, first, row, rank, head, inside, H, P, R, BLOCK_P)
    if combine_ptr is not None:
        store_by_rank(dcombine_ptr, partial, dout * y * gate * open_, rank, RANK, R, P, BLOCK_P, EXACT)
    dout = times_rank_vector(dout, combine_ptr, rank, head, P, R, BLOCK_P)
    dz = dout * y * open_ * (1 + gate * (1 - open_))
    if expand_z_ptr is not None:
        store_by_rank(dexpand_z_ptr, partial, dz * z, rank, RANK, R, P, BLOCK_P, EXACT)
        dz *= rank_vectors(expand_z_ptr, rank, head, P, R, BLOCK_P)
    dz = rounded_over_ranks(dz, STEPS, RANK, BLOCK_P, z_ptr.dtype.element_ty)
    p = tl.arange(0, BLOCK_P)
    at = dz_ptr + (first * H + head) * P + (t * H)[:, None] * P + p[None, :]
    tl.store(at, dz.to(dz_ptr.dtype.element_ty), mask=here[:, None] & (p < P)[None, :])
    return dout * gate * open_


@triton.jit
def normed(y, norm_ptr, head, P: tl.constexpr, BLOCK_P: tl.constexpr):
    """The RMS norm of each row, with weights [H, P]."""
    p = tl.arange(0, BLOCK_P)
    y *= tl.rsqrt(tl.sum(y * y, 1) / P + EPS)[:, None]
    return y * tl.load(norm_ptr + head * P + p, mask=p < P, other=0.0)[None, :]


@triton.jit
def norm_backward(y, dy, norm_ptr, dnorm_ptr, partial, head, P: tl.constexpr, BLOCK_P: tl.constexpr):
    """Through `normed`; stores the program's part of the gradient of the weights [., H, P]."""
    p = tl.arange(0, BLOCK_P)
    rstd = tl.rsqrt(tl.sum(y * y, 1) / P + EPS)[:, None]
    y *= rstd
    tl.store(dnorm_ptr + partial * P + p, tl.sum(dy * y, 0), mask=p < P)
    dy *= tl.load(norm_ptr + head * P + p, mask=p < P, other=0.0)[None, :]
    return rstd * (dy - y * (tl.sum(dy * y, 1) / P)[:, None])


@triton.jit
def store_by_rank(
    out_ptr, partial, rows, rank, RANK: tl.constexpr, R: tl.constexpr, P: tl.constexpr, BLOCK_P: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """The sum over the steps, for each rank: [STEPS * RANK, P] -> out[partial], [R, P]."""
    total = rank_sums(rows, rank, RANK, EXACT)
    r = tl.arange(0, total.shape[0])
    p = tl.arange(0, BLOCK_P)
    out = (partial * R + r)[:, None] * P + p[None, :]
    tl.store(out_ptr + out, total, mask=(r < R)[:, None] & (p < P)[None, :])
