"""The gradient inside a chunk: of x and the numbers, of q and k of each head, and the sums over heads.

With W = (dY X^T) o weight and M = (Q K^T) o weight, Q and K turned:

    dQ = W K + e^g (dY S)    dK = W^T Q + scale e^{g_end - g} (X dS)    dX = M^T dY + scale e^{g_end - g} (K dS) + D dY

<q, dq> and <k, dk>, from which the decay's gradient comes, are sums over pairs of rows, W o Q K^T without what the
ranks of one step give each other (weight gamma), so that their difference carries no rounding of W. In the phase's
gradient that part cancels between q and k, but for fp32: both sides multiply the same rounded numbers.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.triton_gate import ask_for_dy, dy_rows, store_by_rank, store_gate_gradients
from sigma_kernels.scan.triton_prefetch import LINE, ask_for_matrix, ask_for_rows, ask_for_state, later_rows
from sigma_kernels.scan.triton_ranks import (
    by_step,
    over_ranks,
    over_steps,
    rank_vectors,
    rounded_over_ranks,
    value_rows,
)
from sigma_kernels.scan.triton_tiles import (
    chunk_rows,
    entering_weight,
    group_of,
    leaving_weight,
    pair_parts,
    row_angles,
    row_weights,
    state_tile,
    turned_both,
)


@triton.jit
def _store_rows(out_ptr, tile, row, rank, head, inside, pair, H, N2: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr):
    """Rows of one head into [., R, H, N2]."""
    n = 2 * pair + tl.arange(0, 2 * HALF)
    at = out_ptr + (((row * R + rank) * H + head) * N2)[:, None] + n[None, :]
    tl.store(at, tile.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (n < N2)[None, :])


@triton.jit
def _turning(matrix, gradient, M: tl.constexpr, HALF: tl.constexpr):
    """What a turn of the rows changes, [M, HALF]: u_0 du_1 - u_1 du_0 of each pair."""
    u0, u1 = pair_parts(matrix, M, HALF)
    d0, d1 = pair_parts(gradient, M, HALF)
    return u0.to(tl.float32) * d1 - u1.to(tl.float32) * d0


@triton.jit
def value_gradient_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, z_ptr, expand_x_ptr, expand_z_ptr, combine_ptr,
    g_ptr, scale_ptr, gamma_ptr, skip_ptr, start_ptr, dend_ptr, sequence_ptr, dout_ptr, dy_ptr,
    dx_ptr, dz_ptr, rq_ptr, dscale_ptr, dgamma_ptr, dskip_ptr, dexpand_x_ptr, dexpand_z_ptr, dcombine_ptr, T, H,
    x_stride_b, x_stride_t, x_stride_h, z_stride_b, z_stride_t, z_stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Grid (heads, chunks, batch). Takes the states before each chunk and the gradients of those after it.

    Stores dx and dz [B, T, H, P] (dz only with `dout_ptr`: a norm's kernel stored it otherwise); <q, dq>, <k, dk> /
    scale, and d gamma [B, H, T]; and one partial sum for each program (the first axis is batch * chunks): dskip
    [., H], the expansions and the combination [., H, R, P].
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    M: tl.constexpr = STEPS * RANK
    N2: tl.constexpr = 2 * ((N + 1) // 2)
    head = tl.program_id(0)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    group = group_of(head, H, G)
    start = chunk * STEPS
    end = tl.minimum(start + STEPS, T) - 1
    row, rank, inside = chunk_rows(start, T, R, STEPS, RANK)
    step = start + row
    t = tl.arange(0, STEPS)
    here = t < T - start
    p = tl.arange(0, BLOCK_P)
    own = (batch * H + head) * T + start
    first = batch * T + start
    partial = (batch * tl.num_programs(1) + chunk) * H + head
    border = ((batch * H + head) * tl.num_programs(1) + chunk) * (N2 * P)
    q_ptr += first * (R * G * N)
    k_ptr += first * (R * G * N)
    phase_ptr += own * S
    x_ptr += batch * x_stride_b + start.to(tl.int64) * x_stride_t + head.to(tl.int64) * x_stride_h

    own_rows = later_rows(start, T, STEPS, 0)
    ask_for_state(start_ptr + border, chunk, N2, P, 0, LINE)
    ask_for_state(dend_ptr + border, chunk, N2, P, 0, LINE)
    ask_for_rows(x_ptr, own_rows, x_stride_t, P, LINE)
    ask_for_dy(dy_ptr, first, head, own_rows, H, P, R, LINE)
    later = later_rows(start, T, STEPS, AHEAD)
    ask_for_rows(phase_ptr, later, S, S)
    ask_for_matrix(q_ptr, head, later, R * G * N)
    ask_for_matrix(k_ptr, head, later, R * G * N)
    if dout_ptr is not None:
        ask_for_rows(dout_ptr + (first * H + head) * P, own_rows, H * P, P, LINE)
        z_ptr += batch * z_stride_b + start.to(tl.int64) * z_stride_t + head.to(tl.int64) * z_stride_h
        ask_for_rows(z_ptr, own_rows, z_stride_t, P, LINE)
    dots = tl.zeros((M, M), tl.float32)
    q_parts, k_parts = (), ()
    for part in tl.static_range(PARTS):
        q, k = turned_both(
            q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, row, rank, group, head, inside, part * HALF,
            dtype, S, N, G, R, M, HALF,
        )  # fmt: skip
        dots = tl.dot(q, tl.trans(k), dots, input_precision=PRECISION)
        q_parts, k_parts = q_parts + (q,), k_parts + (k,)  # noqa: RUF005 - Triton knows no star here

    x = value_rows(x_ptr, expand_x_ptr, rank, head, T - start, x_stride_t, P, R, BLOCK_P).to(dtype)
    dy = dy_rows(dy_ptr, first, row, rank, head, inside, H, P, R, BLOCK_P)
    g = tl.load(g_ptr + own + row, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + own + row, mask=inside, other=0.0)
    gamma = tl.load(gamma_ptr + own + row, mask=inside, other=0.0)
    skip = tl.load(skip_ptr + head)
    decay, weight = row_weights(g, scale, gamma, g_ptr + own, scale_ptr + own, start, sequence_ptr, T, STEPS, RANK)
    equal = step[:, None] == step[None, :]
    mixing = (dots * weight).to(dtype)
    products = tl.dot(dy, tl.trans(x), input_precision=PRECISION)
    if RANK > 1:  # <dY, x> is the trace of the product, which a thread has a few numbers of
        m = tl.arange(0, M)
        trace = tl.sum(tl.where(m[:, None] == m[None, :], products, 0.0), 1)
    else:  # there the sum takes fewer registers
        trace = tl.sum(dy.to(tl.float32) * x.to(tl.float32), 1)
    tl.store(dskip_ptr + partial, tl.sum(trace, 0))
    products *= dots
    tl.store(dgamma_ptr + own + t, by_step(tl.sum(tl.where(equal, products, 0.0), 1), STEPS, RANK), mask=here)
    products *= decay
    dscale = tl.sum(products, 0)
    rq = tl.sum(products * scale[None, :], 1)

    y = tl.zeros((M, BLOCK_P), tl.float32)
    for part in tl.static_range(PARTS):
        state = state_tile(start_ptr + border, part * HALF, N2, P, HALF, BLOCK_P)
        y = tl.dot(q_parts[part], state, y, input_precision=PRECISION)
    y *= entering_weight(g, step, sequence_ptr, start, T)[:, None]
    tl.store(rq_ptr + own + t, by_step(rq + tl.sum(dy.to(tl.float32) * y, 1), STEPS, RANK), mask=here)
    if dout_ptr is not None:
        y = tl.dot(mixing, x, y, input_precision=PRECISION) + skip * x.to(tl.float32)
        store_gate_gradients(
            y, None, dout_ptr, z_ptr, expand_z_ptr, combine_ptr, dz_ptr, None, dexpand_z_ptr, dcombine_ptr, first,
            partial, rank, t, head, T - start, H, z_stride_t, P, R, STEPS, RANK, BLOCK_P,
        )  # fmt: skip

    dx = tl.zeros((M, BLOCK_P), tl.float32)
    for part in tl.static_range(PARTS):
        dstate = state_tile(dend_ptr + border, part * HALF, N2, P, HALF, BLOCK_P)
        dx = tl.dot(k_parts[part], dstate, dx, input_precision=PRECISION)
    dx *= leaving_weight(g, tl.load(g_ptr + own + end - start), step, sequence_ptr, end, T)[:, None]
    dscale += tl.sum(x.to(tl.float32) * dx, 1)
    tl.store(dscale_ptr + own + t, by_step(dscale, STEPS, RANK), mask=here)
    dx = tl.dot(tl.trans(mixing), dy, dx * scale[:, None], input_precision=PRECISION) + skip * dy.to(tl.float32)
    if expand_x_ptr is not None:
        plain = value_rows(x_ptr, None, rank, head, T - start, x_stride_t, P, R, BLOCK_P)
        store_by_rank(dexpand_x_ptr, partial, dx * plain, rank, RANK, R, P, BLOCK_P, dtype == tl.float32)
        dx *= rank_vectors(expand_x_ptr, rank, head, P, R, BLOCK_P)
    dx = rounded_over_ranks(dx, STEPS, RANK, BLOCK_P, dtype)
    at = dx_ptr + (first * H + head) * P + (t * H)[:, None] * P + p[None, :]
    tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=here[:, None] & (p < P)[None, :])


@triton.jit
def matrix_gradient_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_x_ptr, g_ptr, scale_ptr, gamma_ptr,
    start_ptr, dend_ptr, sequence_ptr, dy_ptr, dq_ptr, dk_ptr, dphase_ptr, T, H, stride_b, stride_t, stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Each head's turned dq and dk [B, T, R, H, N2] and d phase [B, H, T, S]; grid (heads, chunks, batch)."""
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    M: tl.constexpr = STEPS * RANK
    N2: tl.constexpr = 2 * ((N + 1) // 2)
    head = tl.program_id(0)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    group = group_of(head, H, G)
    start = chunk * STEPS
    end = tl.minimum(start + STEPS, T) - 1
    row, rank, inside = chunk_rows(start, T, R, STEPS, RANK)
    step = start + row
    t = tl.arange(0, STEPS)
    own = (batch * H + head) * T + start
    first = batch * T + start
    border = ((batch * H + head) * tl.num_programs(1) + chunk) * (N2 * P)
    x_ptr += batch * stride_b + start.to(tl.int64) * stride_t + head.to(tl.int64) * stride_h
    x = value_rows(x_ptr, expand_x_ptr, rank, head, T - start, stride_t, P, R, BLOCK_P).to(dtype)
    dy = dy_rows(dy_ptr, first, row, rank, head, inside, H, P, R, BLOCK_P)
    g = tl.load(g_ptr + own + row, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + own + row, mask=inside, other=0.0)
    gamma = tl.load(gamma_ptr + own + row, mask=inside, other=0.0)
    q_ptr += first * (R * G * N)
    k_ptr += first * (R * G * N)
    later = later_rows(start, T, STEPS, AHEAD)
    ask_for_state(start_ptr + border, chunk, N2, P, AHEAD)
    ask_for_state(dend_ptr + border, chunk, N2, P, AHEAD)
    ask_for_rows(x_ptr, later, stride_t, P)
    ask_for_dy(dy_ptr, first, head, later, H, P, R)
    ask_for_rows(phase_ptr + own * S, later, S, S)
    ask_for_matrix(q_ptr, head, later, R * G * N)
    ask_for_matrix(k_ptr, head, later, R * G * N)
    for part in tl.static_range(PARTS):
        state = state_tile(start_ptr + border, part * HALF, N2, P, HALF, BLOCK_P)
        dstate = state_tile(dend_ptr + border, part * HALF, N2, P, HALF, BLOCK_P)
        q, k = turned_both(
            q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr + own * S, row, rank, group, head, inside, part * HALF,
            dtype, S, N, G, R, M, HALF,
        )  # fmt: skip
        if part == 0:  # behind the loads of q and k, which are long on their way
            _, weight = row_weights(g, scale, gamma, g_ptr + own, scale_ptr + own, start, sequence_ptr, T, STEPS, RANK)
            w = (tl.dot(dy, tl.trans(x), input_precision=PRECISION) * weight).to(dtype)
        dq = tl.dot(dy, tl.trans(state), input_precision=PRECISION)
        dq *= entering_weight(g, step, sequence_ptr, start, T)[:, None]
        dq = tl.dot(w, k, dq, input_precision=PRECISION)
        _store_rows(dq_ptr + first * (R * H * N2), dq, row, rank, head, inside, part * HALF, H, N2, R, HALF)
        if part * HALF < S:
            dphase = _turning(q, dq, M, HALF)
        dk = tl.dot(x, tl.trans(dstate), input_precision=PRECISION)
        leave = leaving_weight(g, tl.load(g_ptr + own + end - start), step, sequence_ptr, end, T)
        dk *= (leave * scale)[:, None]
        dk = tl.dot(tl.trans(w), q, dk, input_precision=PRECISION)
        _store_rows(dk_ptr + first * (R * H * N2), dk, row, rank, head, inside, part * HALF, H, N2, R, HALF)
        if part * HALF < S:
            dphase = over_ranks(dphase + _turning(k, dk, M, HALF), STEPS, RANK, HALF)
            column = part * HALF + tl.arange(0, HALF)
            mask = (t < T - start)[:, None] & (column < S)[None, :]
            tl.store(dphase_ptr + own * S + t[:, None] * S + column[None, :], dphase, mask=mask)


@triton.jit
def over_heads_kernel(
    head_ptr, phase_ptr, out_ptr, bias_ptr, T, H,
    S: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, HALF: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Turns dq or dk [B, T, R, H, N2] back and sums it over the heads of a group, and over steps for the biases.

    Grid (step blocks, groups * parts of the channels, batch); one warp a program, so that sums over steps need no
    barrier. Stores [B, T, R, G, N], and the bias's part of each program, fp32 [batch * blocks, H, R, N].
    """
    M: tl.constexpr = STEPS * RANK
    N2: tl.constexpr = 2 * ((N + 1) // 2)
    split: tl.constexpr = (N + 1) // 2
    batch = tl.program_id(2).to(tl.int64)
    group = tl.program_id(1) % G
    pair = (tl.program_id(1) // G) * HALF
    start = tl.program_id(0) * STEPS
    row, rank, inside = chunk_rows(start, T, R, STEPS, RANK)
    first = batch * T + start
    n = pair + tl.arange(0, HALF)
    n2 = 2 * pair + tl.arange(0, 2 * HALF)
    r = tl.arange(0, RANK)
    head_ptr += first * (R * H * N2)
    bias_ptr += (batch * tl.num_programs(0) + tl.program_id(0)) * H * (R * N)
    known = inside[:, None] & (n2 < N2)[None, :]
    low_of_rank = (r < R)[:, None] & (n < split)[None, :]
    high_of_rank = (r < R)[:, None] & (n < N // 2)[None, :]
    sum_low = tl.zeros((M, HALF), tl.float32)
    sum_high = tl.zeros((M, HALF), tl.float32)
    for head in tl.range(group * (H // G), (group + 1) * (H // G), num_stages=STAGES):
        at = head_ptr + (((row * R + rank) * H + head) * N2)[:, None] + n2[None, :]
        d0, d1 = pair_parts(tl.load(at, mask=known, other=0.0).to(tl.float32), M, HALF)
        cos, sin = row_angles(phase_ptr + ((batch * H + head) * T + start) * S, row, inside, pair, S, HALF)
        low = d0 * cos + d1 * sin
        high = d1 * cos - d0 * sin
        out = bias_ptr + ((head * R + r) * N)[:, None] + n[None, :]
        tl.store(out, over_steps(low, STEPS, RANK, HALF), mask=low_of_rank)
        tl.store(out + split, over_steps(high, STEPS, RANK, HALF), mask=high_of_rank)
        sum_low += low
        sum_high += high
    at = out_ptr + first * (R * G * N) + (((row * R + rank) * G + group) * N)[:, None] + n[None, :]
    kind: tl.constexpr = out_ptr.dtype.element_ty
    tl.store(at, sum_low.to(kind), mask=inside[:, None] & (n < split)[None, :])
    tl.store(at + split, sum_high.to(kind), mask=inside[:, None] & (n < N // 2)[None, :])
