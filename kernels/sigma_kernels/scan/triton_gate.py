"""What stands behind Y, backward: the gradient that reaches Y through combination, gate and norm, and theirs."""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import sigmoid, sigmoid_for_16_bits
from sigma_kernels.scan.prepare import NORM_EPS
from sigma_kernels.scan.triton_prefetch import SECTOR, ask_for_rows
from sigma_kernels.scan.triton_ranks import (
    of_rows,
    rank_sums,
    rank_vectors,
    rounded_over_ranks,
    times_rank_vector,
    value_rows,
    vectors_of_head,
)
from sigma_kernels.scan.triton_tiles import (
    once,
)

EPS = tl.constexpr(NORM_EPS)


@triton.jit
def gate_rows(z_ptr, expand_z_ptr, rank, head, left, stride_t, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """(z, z times the rank's vector, its sigmoid), fp32 rows."""
    z = value_rows(z_ptr, None, rank, head, left, stride_t, P, R, BLOCK_P)
    gate = times_rank_vector(z, expand_z_ptr, rank, head, P, R, BLOCK_P)
    if z_ptr.dtype.element_ty.primitive_bitwidth == 16:
        open_ = sigmoid_for_16_bits(gate)
    else:
        open_ = sigmoid(gate)
    return z, gate, once(open_)


@triton.jit
def gradient_rows(
    dout_ptr, z_ptr, expand_z_ptr, combine_ptr, first, rank, head, left, H, stride_t,
    P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The output's gradient taken through combination and gate, fp32 rows; `first` counts steps of all B * T."""
    _, gate, open_ = gate_rows(z_ptr, expand_z_ptr, rank, head, left, stride_t, P, R, BLOCK_P)
    dout = value_rows(dout_ptr + (first * H + head) * P, combine_ptr, rank, head, left, H * P, P, R, BLOCK_P)
    return dout * gate * open_


@triton.jit
def _at_dy(dy_ptr, first, row, rank, head, H, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """Where the rows of dY [B, T, R, H, P] are, from the step `first` of all B * T steps on."""
    p = tl.arange(0, BLOCK_P)
    return dy_ptr + (first * R * H + head) * P + ((row * R + rank) * H)[:, None] * P + p[None, :]


@triton.jit
def dy_rows(dy_ptr, first, row, rank, head, inside, H, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """Rows [M, BLOCK_P] of dY, in their dtype."""
    mask = inside[:, None]
    if BLOCK_P != P:
        mask = mask & (tl.arange(0, BLOCK_P) < P)[None, :]
    return tl.load(_at_dy(dy_ptr, first, row, rank, head, H, P, R, BLOCK_P), mask=mask, other=0.0)


@triton.jit
def ask_for_dy(
    dy_ptr, first, head, row, H, P: tl.constexpr, R: tl.constexpr, BYTES: tl.constexpr = SECTOR
):  # fmt: skip
    """`ask_for_rows` of `dy_rows`."""
    for r in tl.static_range(R):
        ask_for_rows(dy_ptr + ((first * R + r) * H + head) * P, row, R * H * P, P, BYTES)


@triton.jit
def store_dy_rows(
    dy_ptr, dy, first, row, rank, head, inside, H, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr
):
    """`dy_rows`, the other way."""
    mask = inside[:, None] & (tl.arange(0, BLOCK_P) < P)[None, :]
    tl.store(_at_dy(dy_ptr, first, row, rank, head, H, P, R, BLOCK_P), dy, mask=mask)


@triton.jit
def combined(rows, combine_ptr, norm_ptr, rank, head, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """Rows times their rank's part of the combination [H, R, P] and the norm's weights [H, P], where there are any."""
    p = tl.arange(0, BLOCK_P)
    if norm_ptr is None:
        rows = times_rank_vector(rows, combine_ptr, rank, head, P, R, BLOCK_P)
    else:
        weights = tl.load(norm_ptr + head * P + p, mask=p < P, other=0.0)[None, :]
        if combine_ptr is not None:
            vectors = vectors_of_head(combine_ptr, head, P, R, BLOCK_P) * weights
            RANK: tl.constexpr = triton.next_power_of_2(R)
            weights = of_rows(vectors[None, :, :], rank.shape[0] // RANK, RANK, BLOCK_P)
        rows *= weights
    return rows


@triton.jit
def store_gate_gradients(
    y, norm_ptr, dout_ptr, z_ptr, expand_z_ptr, combine_ptr, dz_ptr, dnorm_ptr, dexpand_z_ptr, dcombine_ptr,
    first, partial, rank, t, head, left, H, stride_t,
    P: tl.constexpr, R: tl.constexpr, STEPS: tl.constexpr, RANK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """dz of the steps `t` [B, T, H, P]; the program's part of d expand_z and of what combination or norm get.

    `y`, fp32 rows, is what the norm's weights, the combination and the gate multiply. The part is [., H, R, P] of the
    gradient of combination times weights, or [., H, P] of the weights' where there is no combination. Returns the
    gradient of `y`.
    """
    EXACT: tl.constexpr = z_ptr.dtype.element_ty == tl.float32
    p = tl.arange(0, BLOCK_P)
    z, gate, open_ = gate_rows(z_ptr, expand_z_ptr, rank, head, left, stride_t, P, R, BLOCK_P)
    dout = value_rows(dout_ptr + (first * H + head) * P, None, rank, head, left, H * P, P, R, BLOCK_P)
    if combine_ptr is not None:
        store_by_rank(dcombine_ptr, partial, dout * y * gate * open_, rank, RANK, R, P, BLOCK_P, EXACT)
    elif norm_ptr is not None:
        tl.store(dnorm_ptr + partial * P + p, tl.sum(dout * y * gate * open_, 0), mask=p < P)
    dout = combined(dout, combine_ptr, norm_ptr, rank, head, P, R, BLOCK_P)
    dz = dout * y * open_ * (1 + gate * (1 - open_))
    if expand_z_ptr is not None:
        store_by_rank(dexpand_z_ptr, partial, dz * z, rank, RANK, R, P, BLOCK_P, EXACT)
        dz *= rank_vectors(expand_z_ptr, rank, head, P, R, BLOCK_P)
    dz = rounded_over_ranks(dz, STEPS, RANK, BLOCK_P, z_ptr.dtype.element_ty)
    at = dz_ptr + (first * H + head) * P + (t * H)[:, None] * P + p[None, :]
    tl.store(at, dz.to(dz_ptr.dtype.element_ty), mask=(t < left)[:, None] & (p < P)[None, :])
    return dout * gate * open_


@triton.jit
def normed(y, P: tl.constexpr):
    """(rows over their root mean square, its inverse [M, 1])."""
    rstd = tl.rsqrt(tl.sum(y * y, 1) / P + EPS)[:, None]
    return y * rstd, rstd


@triton.jit
def norm_backward(y, rstd, dy, P: tl.constexpr):
    """Through `normed`: its two results, and the gradient of the first."""
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
