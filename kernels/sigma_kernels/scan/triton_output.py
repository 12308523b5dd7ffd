"""From the states to the output: the dual form inside a chunk, D, norm and gate; and back through the norm."""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.triton_gate import (
    combined,
    gate_rows,
    norm_backward,
    normed,
    store_dy_rows,
    store_gate_gradients,
)
from sigma_kernels.scan.triton_prefetch import ask_for_matrix, ask_for_rows, ask_for_state, later_rows
from sigma_kernels.scan.triton_ranks import (
    over_ranks,
    value_rows,
)
from sigma_kernels.scan.triton_tiles import (
    chunk_rows,
    entering_weight,
    group_of,
    row_weights,
    state_tile,
    turned_both,
)


@triton.jit
def raw_output(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_x_ptr, g_ptr, scale_ptr, gamma_ptr, skip_ptr,
    start_ptr, sequence_ptr, batch, head, chunk, T, H, stride_b, stride_t, stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Y of one chunk, fp32 [M, BLOCK_P], before norm and gate; and `chunk_rows`."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    start = chunk * STEPS
    own = (batch * H + head) * T + start
    matrix = (batch * T + start) * (R * G * N)
    q_ptr += matrix
    k_ptr += matrix
    N2: tl.constexpr = 2 * ((N + 1) // 2)
    start_ptr += ((batch * H + head) * tl.num_programs(1) + chunk) * (N2 * P)
    x_ptr += batch * stride_b + start.to(tl.int64) * stride_t + head.to(tl.int64) * stride_h
    M: tl.constexpr = STEPS * RANK
    row, rank, inside = chunk_rows(start, T, R, STEPS, RANK)
    step = start + row
    group = group_of(head, H, G)
    later = later_rows(start, T, STEPS, AHEAD)
    ask_for_state(start_ptr, chunk, N2, P, AHEAD)
    ask_for_rows(x_ptr, later, stride_t, P)
    ask_for_rows(phase_ptr + own * S, later, S, S)
    ask_for_matrix(q_ptr, head, later, R * G * N)
    ask_for_matrix(k_ptr, head, later, R * G * N)
    g = tl.load(g_ptr + own + row, mask=inside, other=0.0)
    dots = tl.zeros((M, M), tl.float32)
    y = tl.zeros((M, BLOCK_P), tl.float32)
    for part in tl.static_range(PARTS):
        state = state_tile(start_ptr, part * HALF, N2, P, HALF, BLOCK_P)
        q, k = turned_both(
            q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr + own * S, row, rank, group, head, inside, part * HALF,
            dtype, S, N, G, R, M, HALF,
        )  # fmt: skip
        dots = tl.dot(q, tl.trans(k), dots, input_precision=PRECISION)
        y = tl.dot(q, state, y, input_precision=PRECISION)
    y *= entering_weight(g, step, sequence_ptr, start, T)[:, None]

    scale = tl.load(scale_ptr + own + row, mask=inside, other=0.0)
    gamma = tl.load(gamma_ptr + own + row, mask=inside, other=0.0)
    _, weight = row_weights(g, scale, gamma, g_ptr + own, scale_ptr + own, start, sequence_ptr, T, STEPS, RANK)
    mixing = (dots * weight).to(dtype)
    x = value_rows(x_ptr, expand_x_ptr, rank, head, T - start, stride_t, P, R, BLOCK_P)
    upper = x.to(dtype)
    y = tl.dot(mixing, upper, y, input_precision=PRECISION)
    if expand_x_ptr is not None and dtype != tl.float32:  # what rounding the expanded x left over
        y = tl.dot(mixing, (x - upper.to(tl.float32)).to(dtype), y, input_precision=PRECISION)
    return y + tl.load(skip_ptr + head) * x, row, rank, inside


@triton.jit
def scan_output_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, z_ptr, expand_x_ptr, expand_z_ptr, combine_ptr,
    g_ptr, scale_ptr, gamma_ptr, skip_ptr, norm_ptr, start_ptr, sequence_ptr, out_ptr, T, H,
    x_stride_b, x_stride_t, x_stride_h, z_stride_b, z_stride_t, z_stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """out [B, T, H, P] = sum_r combine_r norm(Y_r) SiLU(z z_r); grid (heads, chunks, batch)."""
    head = tl.program_id(0)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    start = chunk * STEPS
    z_ptr += batch * z_stride_b + start.to(tl.int64) * z_stride_t + head.to(tl.int64) * z_stride_h
    ask_for_rows(z_ptr, later_rows(start, T, STEPS, AHEAD), z_stride_t, P)
    y, _, rank, _ = raw_output(
        q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_x_ptr, g_ptr, scale_ptr, gamma_ptr, skip_ptr,
        start_ptr, sequence_ptr, batch, head, chunk, T, H, x_stride_b, x_stride_t, x_stride_h,
        S, P, N, G, R, RANK, STEPS, HALF, PARTS, BLOCK_P, PRECISION, AHEAD,
    )  # fmt: skip
    if norm_ptr is not None:
        y, _ = normed(y, P)
    _, gate, open_ = gate_rows(z_ptr, expand_z_ptr, rank, head, T - start, z_stride_t, P, R, BLOCK_P)
    y = combined(y * (gate * open_), combine_ptr, norm_ptr, rank, head, P, R, BLOCK_P)
    y = over_ranks(y, STEPS, RANK, BLOCK_P)
    p = tl.arange(0, BLOCK_P)
    t = start + tl.arange(0, STEPS)
    out = ((batch * T + t) * H + head)[:, None] * P + p[None, :]
    tl.store(out_ptr + out, y.to(out_ptr.dtype.element_ty), mask=(t < T)[:, None] & (p < P)[None, :])


@triton.jit
def norm_backward_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, z_ptr, expand_x_ptr, expand_z_ptr, combine_ptr,
    g_ptr, scale_ptr, gamma_ptr, skip_ptr, norm_ptr, start_ptr, sequence_ptr,
    dout_ptr, dy_ptr, dz_ptr, dnorm_ptr, dexpand_z_ptr, dcombine_ptr, T, H,
    x_stride_b, x_stride_t, x_stride_h, z_stride_b, z_stride_t, z_stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Recomputes Y and goes back through combination, gate and norm; same grid as the forward.

    Without a norm dY needs no Y, and nothing of this runs. Stores dY as rows [B, T, R, H, P], dz
    [B, T, H, P], and one partial sum for each program (the first axis is batch * chunks): dexpand_z [., H, R, P], and
    dcombine or dnorm as of `store_gate_gradients`.
    """
    head = tl.program_id(0)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    start = chunk * STEPS
    first = batch * T + start
    z_ptr += batch * z_stride_b + start.to(tl.int64) * z_stride_t + head.to(tl.int64) * z_stride_h
    later = later_rows(start, T, STEPS, AHEAD)
    ask_for_rows(z_ptr, later, z_stride_t, P)
    ask_for_rows(dout_ptr + (first * H + head) * P, later, H * P, P)
    y, row, rank, inside = raw_output(
        q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_x_ptr, g_ptr, scale_ptr, gamma_ptr, skip_ptr,
        start_ptr, sequence_ptr, batch, head, chunk, T, H, x_stride_b, x_stride_t, x_stride_h,
        S, P, N, G, R, RANK, STEPS, HALF, PARTS, BLOCK_P, PRECISION, AHEAD,
    )  # fmt: skip
    partial = (batch * tl.num_programs(1) + chunk) * H + head
    t = tl.arange(0, STEPS)
    y, rstd = normed(y, P)
    dy = store_gate_gradients(
        y, norm_ptr, dout_ptr, z_ptr, expand_z_ptr, combine_ptr, dz_ptr, dnorm_ptr, dexpand_z_ptr,
        dcombine_ptr, first, partial, rank, t, head, T - start, H, z_stride_t,
        P, R, STEPS, RANK, BLOCK_P,
    )  # fmt: skip
    dy = norm_backward(y, rstd, dy, P).to(dy_ptr.dtype.element_ty)
    store_dy_rows(dy_ptr, dy, first, row, rank, head, inside, H, P, R, BLOCK_P)
