"""The gradient inside a chunk: of q from the rows before, of k and of x from the rows after.

Three kernels, as in flash attention: one owns a block of rows and looks back, two own a block and look ahead. Those of
q and k loop over heads that share B and C, so that the sums over heads stay in registers. The same-step part (weight
gamma) is kept out of <q, dq> and <k, dk>, where it cancels and would only add its rounding. These products and the
gradient of the phase do not change when both sides turn, so that they are taken after dq and dk are turned back.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.triton_output import over_ranks, over_steps, state_halves
from sigma_kernels.scan.triton_tiles import (
    decay_between,
    decay_to,
    entering_weight,
    leaving_weight,
    matrix_rows,
    row_angles,
    turned_rows,
    value_rows,
)


@triton.jit
def _by_step(row_sums, STEPS: tl.constexpr, RANK: tl.constexpr):
    if RANK == 1:
        out = row_sums
    else:
        out = tl.sum(tl.reshape(row_sums, (STEPS, RANK)), 1)
    return out


@triton.jit
def _store_phase(
    dphase_ptr, dphase, t, inside, pair, S: tl.constexpr, STEPS: tl.constexpr, RANK: tl.constexpr, HALF: tl.constexpr
):
    """d phase of every step, summed over its ranks, into [T, S]."""
    column = pair + tl.arange(0, HALF)
    out = over_ranks(dphase, STEPS, RANK, HALF).to(dphase_ptr.dtype.element_ty)
    tl.store(dphase_ptr + t[:, None] * S + column[None, :], out, mask=inside[:, None] & (column < S)[None, :])


@triton.jit
def _store_bias(
    out_ptr, low, high, pair,
    N: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, STEPS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The sum over the steps of one head's rows into [R, N]."""
    n = pair + tl.arange(0, HALF)
    r = tl.arange(0, RANK)
    split: tl.constexpr = (N + 1) // 2
    at = out_ptr + (r * N)[:, None] + n[None, :]
    low = over_steps(low, STEPS, RANK, HALF)
    high = over_steps(high, STEPS, RANK, HALF)
    tl.store(at, low, mask=(r < R)[:, None] & (n < split)[None, :])
    tl.store(at + split, high, mask=(r < R)[:, None] & (n < N // 2)[None, :])


@triton.jit
def _store_matrix(out_ptr, low, high, row, rank, inside, pair, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
                  HALF: tl.constexpr):  # fmt: skip
    """Rows into [., R, G, N] of one group."""
    n = pair + tl.arange(0, HALF)
    split: tl.constexpr = (N + 1) // 2
    at = out_ptr + ((row * R + rank) * (G * N))[:, None] + n[None, :]
    tl.store(at, low, mask=inside[:, None] & (n < split)[None, :])
    tl.store(at + split, high, mask=inside[:, None] & (n < N // 2)[None, :])


@triton.jit
def _add_same_step(low, high, u0, u1, mix, dy, x, gamma, step, RANK: tl.constexpr, PRECISION: tl.constexpr):
    """Adds what the ranks of one step give each other, weight gamma; u is the other side, not turned."""
    if RANK == 1:
        same = (gamma * tl.sum(dy.to(tl.float32) * x.to(tl.float32), 1))[:, None]
        low += same * u0
        high += same * u1
    else:
        same = tl.where(step[:, None] == step[None, :], mix * gamma[:, None], 0.0).to(x.dtype)
        low = tl.dot(same, u0.to(x.dtype), low, input_precision=PRECISION)
        high = tl.dot(same, u1.to(x.dtype), high, input_precision=PRECISION)
    return low, high


@triton.jit
def query_gradient_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_ptr, g_ptr, scale_ptr, gamma_ptr,
    state_ptr, sequence_ptr, dy_ptr, dq_ptr, dbias_ptr, rq_ptr, dphase_ptr, T, H,
    stride_b, stride_t, stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, BLOCKS: tl.constexpr,
    HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ = W K + e^g (dY S), with W = (dY X^T) o weight; grid (head blocks, chunks * blocks, batch * PARTS).

    A program owns HALF of the pairs of channels. Stores the sum over the head block of the unturned dQ
    [blocks of a group, B, T, R, G, N], the part of the bias [., H, R, N], <q, dq> [PARTS, B, H, T] and d phase
    [B, H, T, S].
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    chunk = tl.program_id(1) // BLOCKS
    block = tl.program_id(1) % BLOCKS
    chunks = tl.num_programs(1) // BLOCKS
    batch = (tl.program_id(2) // PARTS).to(tl.int64)
    pair = (tl.program_id(2) % PARTS) * HALF
    group = tl.program_id(0) * HEADS // (H // G)
    m = tl.arange(0, STEPS * RANK)
    rank = m % RANK
    start = chunk * STEPS * BLOCKS
    row = block * STEPS + m // RANK
    step = start + row
    inside = (step < T) & (rank < R)
    t = block * STEPS + tl.arange(0, STEPS)
    first = batch * T + start
    q_ptr += first * (R * G * N)
    k_ptr += first * (R * G * N)
    dy_ptr += first * (R * H * P)
    x_ptr += batch * stride_b + start.to(tl.int64) * stride_t
    part_of_sum = (tl.program_id(2) % PARTS) * (tl.num_programs(2) // PARTS).to(tl.int64) * H * T
    sum_low = tl.zeros((STEPS * RANK, HALF), tl.float32)
    sum_high = tl.zeros((STEPS * RANK, HALF), tl.float32)
    for i in range(HEADS):
        head = tl.program_id(0) * HEADS + i
        own = (batch * H + head) * T + start
        x_head_ptr = x_ptr + head.to(tl.int64) * stride_h
        g = tl.load(g_ptr + own + row, mask=inside, other=0.0)
        dy = value_rows(dy_ptr + head * P, None, row, rank, head, inside, R * H * P, H * P, P, R, BLOCK_P)
        s0, s1 = state_halves(state_ptr + ((batch * H + head) * chunks + chunk) * (N * P), pair, N, P, HALF, BLOCK_P)
        enter = entering_weight(g, step, sequence_ptr, start, T)[:, None]
        low = tl.dot(dy, tl.trans(s0), input_precision=PRECISION) * enter
        high = tl.dot(dy, tl.trans(s1), input_precision=PRECISION) * enter
        if BLOCKS > 1:
            for j in range(0, block):
                row_j = j * STEPS + m // RANK
                inside_j = (start + row_j < T) & (rank < R)
                cos_j, sin_j = row_angles(phase_ptr + own * S, row_j, inside_j, pair, S, HALF)
                e0, e1 = turned_rows(
                    k_ptr, k_bias_ptr, cos_j, sin_j, row_j, rank, group, head, inside_j, pair, N, G, R, HALF
                )
                x_j = value_rows(x_head_ptr, expand_ptr, row_j, rank, head, inside_j, stride_t, 0, P, R, BLOCK_P)
                g_j = tl.load(g_ptr + own + row_j, mask=inside_j, other=0.0)
                scale_j = tl.load(scale_ptr + own + row_j, mask=inside_j, other=0.0)
                v = tl.dot(dy, tl.trans(x_j), input_precision=PRECISION)
                v *= decay_between(g, g_j, step, start + row_j, sequence_ptr, T) * scale_j[None, :]
                low = tl.dot(v.to(dtype), e0.to(dtype), low, input_precision=PRECISION)
                high = tl.dot(v.to(dtype), e1.to(dtype), high, input_precision=PRECISION)
        x = value_rows(x_head_ptr, expand_ptr, row, rank, head, inside, stride_t, 0, P, R, BLOCK_P)
        scale = tl.load(scale_ptr + own + row, mask=inside, other=0.0)
        gamma = tl.load(gamma_ptr + own + row, mask=inside, other=0.0)
        mix = tl.dot(dy, tl.trans(x), input_precision=PRECISION)
        w = (mix * decay_between(g, g, step, step, sequence_ptr, T) * scale[None, :]).to(dtype)
        cos, sin = row_angles(phase_ptr + own * S, row, inside, pair, S, HALF)
        k0, k1 = turned_rows(k_ptr, k_bias_ptr, cos, sin, row, rank, group, head, inside, pair, N, G, R, HALF)
        low = tl.dot(w, k0.to(dtype), low, input_precision=PRECISION)
        high = tl.dot(w, k1.to(dtype), high, input_precision=PRECISION)
        low, high = low * cos + high * sin, high * cos - low * sin
        u0, u1 = matrix_rows(q_ptr, q_bias_ptr, row, rank, group, head, inside, pair, N, G, R, HALF)
        here = t < T - start
        tl.store(rq_ptr + part_of_sum + own + t, _by_step(tl.sum(u0 * low + u1 * high, 1), STEPS, RANK), mask=here)
        _store_phase(dphase_ptr + own * S, u0 * high - u1 * low, t, here, pair, S, STEPS, RANK, HALF)
        u0, u1 = matrix_rows(k_ptr, k_bias_ptr, row, rank, group, head, inside, pair, N, G, R, HALF)
        low, high = _add_same_step(low, high, u0, u1, mix, dy, x, gamma, step, RANK, PRECISION)
        part = (batch * tl.num_programs(1) + tl.program_id(1)) * H + head
        _store_bias(dbias_ptr + part * (R * N), low, high, pair, N, R, HALF, STEPS, RANK)
        sum_low += low
        sum_high += high
    place = (tl.program_id(0) % (tl.num_programs(0) // G)) * (tl.num_programs(2) // PARTS) + batch
    dq_ptr += (place * T + start) * (R * G * N) + group * N
    _store_matrix(dq_ptr, sum_low, sum_high, row, rank, inside, pair, N, G, R, HALF)


@triton.jit
def key_gradient_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_ptr, g_ptr, scale_ptr, gamma_ptr,
    dend_ptr, sequence_ptr, dy_ptr, dk_ptr, dbias_ptr, dscale_ptr, dphase_ptr, T, H,
    stride_b, stride_t, stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, BLOCKS: tl.constexpr,
    HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK = scale (W^T Q + e^{g_end - g} (X dS)), with W = (dY X^T) o decay; grid and outputs as for the queries.

    Instead of <q, dq> it stores d scale [PARTS, B, H, T] = <k, dK> / scale.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    chunk = tl.program_id(1) // BLOCKS
    block = tl.program_id(1) % BLOCKS
    chunks = tl.num_programs(1) // BLOCKS
    batch = (tl.program_id(2) // PARTS).to(tl.int64)
    pair = (tl.program_id(2) % PARTS) * HALF
    group = tl.program_id(0) * HEADS // (H // G)
    m = tl.arange(0, STEPS * RANK)
    rank = m % RANK
    start = chunk * STEPS * BLOCKS
    end = tl.minimum(start + STEPS * BLOCKS, T) - 1
    row = block * STEPS + m // RANK
    step = start + row
    inside = (step < T) & (rank < R)
    t = block * STEPS + tl.arange(0, STEPS)
    first = batch * T + start
    q_ptr += first * (R * G * N)
    k_ptr += first * (R * G * N)
    dy_ptr += first * (R * H * P)
    x_ptr += batch * stride_b + start.to(tl.int64) * stride_t
    part_of_sum = (tl.program_id(2) % PARTS) * (tl.num_programs(2) // PARTS).to(tl.int64) * H * T
    sum_low = tl.zeros((STEPS * RANK, HALF), tl.float32)
    sum_high = tl.zeros((STEPS * RANK, HALF), tl.float32)
    for i in range(HEADS):
        head = tl.program_id(0) * HEADS + i
        own = (batch * H + head) * T + start
        x_head_ptr = x_ptr + head.to(tl.int64) * stride_h
        g = tl.load(g_ptr + own + row, mask=inside, other=0.0)
        x = value_rows(x_head_ptr, expand_ptr, row, rank, head, inside, stride_t, 0, P, R, BLOCK_P)
        e0, e1 = state_halves(dend_ptr + ((batch * H + head) * chunks + chunk) * (N * P), pair, N, P, HALF, BLOCK_P)
        leave = leaving_weight(g, tl.load(g_ptr + own + end - start), step, sequence_ptr, end, T)[:, None]
        low = tl.dot(x, tl.trans(e0), input_precision=PRECISION) * leave
        high = tl.dot(x, tl.trans(e1), input_precision=PRECISION) * leave
        if BLOCKS > 1:
            for j in range(block + 1, BLOCKS):
                row_i = j * STEPS + m // RANK
                inside_i = (start + row_i < T) & (rank < R)
                cos_i, sin_i = row_angles(phase_ptr + own * S, row_i, inside_i, pair, S, HALF)
                r0, r1 = turned_rows(
                    q_ptr, q_bias_ptr, cos_i, sin_i, row_i, rank, group, head, inside_i, pair, N, G, R, HALF
                )
                dy_i = value_rows(dy_ptr + head * P, None, row_i, rank, head, inside_i, R * H * P, H * P, P, R, BLOCK_P)
                g_i = tl.load(g_ptr + own + row_i, mask=inside_i, other=0.0)
                v = tl.dot(x, tl.trans(dy_i), input_precision=PRECISION)
                v *= decay_to(g, g_i, step, start + row_i, sequence_ptr, T)
                low = tl.dot(v.to(dtype), r0.to(dtype), low, input_precision=PRECISION)
                high = tl.dot(v.to(dtype), r1.to(dtype), high, input_precision=PRECISION)
        dy = value_rows(dy_ptr + head * P, None, row, rank, head, inside, R * H * P, H * P, P, R, BLOCK_P)
        scale = tl.load(scale_ptr + own + row, mask=inside, other=0.0)
        gamma = tl.load(gamma_ptr + own + row, mask=inside, other=0.0)
        # transposed tiles: rows are the keys j, columns the queries i
        mix = tl.dot(x, tl.trans(dy), input_precision=PRECISION)
        w = (mix * decay_to(g, g, step, step, sequence_ptr, T)).to(dtype)
        cos, sin = row_angles(phase_ptr + own * S, row, inside, pair, S, HALF)
        q0, q1 = turned_rows(q_ptr, q_bias_ptr, cos, sin, row, rank, group, head, inside, pair, N, G, R, HALF)
        low = tl.dot(w, q0.to(dtype), low, input_precision=PRECISION)
        high = tl.dot(w, q1.to(dtype), high, input_precision=PRECISION)
        low, high = low * cos + high * sin, high * cos - low * sin
        u0, u1 = matrix_rows(k_ptr, k_bias_ptr, row, rank, group, head, inside, pair, N, G, R, HALF)
        here = t < T - start
        tl.store(dscale_ptr + part_of_sum + own + t, _by_step(tl.sum(u0 * low + u1 * high, 1), STEPS, RANK), mask=here)
        low *= scale[:, None]
        high *= scale[:, None]
        _store_phase(dphase_ptr + own * S, u0 * high - u1 * low, t, here, pair, S, STEPS, RANK, HALF)
        u0, u1 = matrix_rows(q_ptr, q_bias_ptr, row, rank, group, head, inside, pair, N, G, R, HALF)
        low, high = _add_same_step(low, high, u0, u1, mix, dy, x, gamma, step, RANK, PRECISION)
        part = (batch * tl.num_programs(1) + tl.program_id(1)) * H + head
        _store_bias(dbias_ptr + part * (R * N), low, high, pair, N, R, HALF, STEPS, RANK)
        sum_low += low
        sum_high += high
    place = (tl.program_id(0) % (tl.num_programs(0) // G)) * (tl.num_programs(2) // PARTS) + batch
    dk_ptr += (place * T + start) * (R * G * N) + group * N
    _store_matrix(dk_ptr, sum_low, sum_high, row, rank, inside, pair, N, G, R, HALF)


@triton.jit
def value_gradient_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_ptr, g_ptr, scale_ptr, gamma_ptr, skip_ptr,
    dend_ptr, sequence_ptr, dy_ptr, dx_ptr, dexpand_ptr, dgamma_ptr, T, H, stride_b, stride_t, stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, BLOCKS: tl.constexpr,
    HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dX = M^T dY + scale e^{g_end - g} (K dS) + D dY, M the mixing matrix; grid (heads, chunks * blocks, batch).

    Stores dx [B, T, H, P], d gamma [B, H, T] and the part of the expansion [., H, R, P].
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    head = tl.program_id(0)
    chunk = tl.program_id(1) // BLOCKS
    block = tl.program_id(1) % BLOCKS
    chunks = tl.num_programs(1) // BLOCKS
    batch = tl.program_id(2).to(tl.int64)
    group = head // (H // G)
    m = tl.arange(0, STEPS * RANK)
    rank = m % RANK
    start = chunk * STEPS * BLOCKS
    end = tl.minimum(start + STEPS * BLOCKS, T) - 1
    row = block * STEPS + m // RANK
    step = start + row
    inside = (step < T) & (rank < R)
    p = tl.arange(0, BLOCK_P)
    own = (batch * H + head) * T + start
    first = batch * T + start
    q_ptr += first * (R * G * N)
    k_ptr += first * (R * G * N)
    dy_ptr += (first * R * H + head) * P
    x_ptr += batch * stride_b + start.to(tl.int64) * stride_t + head.to(tl.int64) * stride_h
    g = tl.load(g_ptr + own + row, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + own + row, mask=inside, other=0.0)
    gamma = tl.load(gamma_ptr + own + row, mask=inside, other=0.0)
    # transposed tiles: rows are the keys j, columns the queries i
    dots = tl.zeros((STEPS * RANK, STEPS * RANK), tl.float32)
    dx = tl.zeros((STEPS * RANK, BLOCK_P), tl.float32)
    for channels in tl.static_range(PARTS):
        cos, sin = row_angles(phase_ptr + own * S, row, inside, channels * HALF, S, HALF)
        k0, k1 = turned_rows(
            k_ptr, k_bias_ptr, cos, sin, row, rank, group, head, inside, channels * HALF, N, G, R, HALF
        )
        k0 = k0.to(dtype)
        k1 = k1.to(dtype)
        q0, q1 = turned_rows(
            q_ptr, q_bias_ptr, cos, sin, row, rank, group, head, inside, channels * HALF, N, G, R, HALF
        )
        dots = tl.dot(k0, tl.trans(q0.to(dtype)), dots, input_precision=PRECISION)
        dots = tl.dot(k1, tl.trans(q1.to(dtype)), dots, input_precision=PRECISION)
        e0, e1 = state_halves(
            dend_ptr + ((batch * H + head) * chunks + chunk) * (N * P), channels * HALF, N, P, HALF, BLOCK_P
        )
        dx = tl.dot(k0, e0, dx, input_precision=PRECISION)
        dx = tl.dot(k1, e1, dx, input_precision=PRECISION)
    leave = leaving_weight(g, tl.load(g_ptr + own + end - start), step, sequence_ptr, end, T)
    dx *= (leave * scale)[:, None]
    dy = value_rows(dy_ptr, None, row, rank, head, inside, R * H * P, H * P, P, R, BLOCK_P)
    equal = step[:, None] == step[None, :]
    weight = decay_to(g, g, step, step, sequence_ptr, T) * scale[:, None]
    weight += tl.where(equal, gamma[:, None], 0.0)
    dx = tl.dot((dots * weight).to(dtype), dy, dx, input_precision=PRECISION)
    x = value_rows(x_ptr, expand_ptr, row, rank, head, inside, stride_t, 0, P, R, BLOCK_P)
    if RANK == 1:
        dgamma = tl.sum(tl.where(equal, dots, 0.0), 1) * tl.sum(dy.to(tl.float32) * x.to(tl.float32), 1)
    else:
        dgamma = tl.sum(tl.where(equal, dots * tl.dot(x, tl.trans(dy), input_precision=PRECISION), 0.0), 1)
    if BLOCKS > 1:
        for j in range(block + 1, BLOCKS):
            row_i = j * STEPS + m // RANK
            inside_i = (start + row_i < T) & (rank < R)
            between = tl.zeros((STEPS * RANK, STEPS * RANK), tl.float32)
            for channels in tl.static_range(PARTS):
                cos_j, sin_j = row_angles(phase_ptr + own * S, row, inside, channels * HALF, S, HALF)
                c0, c1 = turned_rows(
                    k_ptr, k_bias_ptr, cos_j, sin_j, row, rank, group, head, inside, channels * HALF, N, G, R, HALF
                )
                cos_i, sin_i = row_angles(phase_ptr + own * S, row_i, inside_i, channels * HALF, S, HALF)
                r0, r1 = turned_rows(
                    q_ptr, q_bias_ptr, cos_i, sin_i, row_i, rank, group, head, inside_i, channels * HALF, N, G, R, HALF
                )
                between = tl.dot(c0.to(dtype), tl.trans(r0.to(dtype)), between, input_precision=PRECISION)
                between = tl.dot(c1.to(dtype), tl.trans(r1.to(dtype)), between, input_precision=PRECISION)
            dy_i = value_rows(dy_ptr, None, row_i, rank, head, inside_i, R * H * P, H * P, P, R, BLOCK_P)
            g_i = tl.load(g_ptr + own + row_i, mask=inside_i, other=0.0)
            later = decay_to(g, g_i, step, start + row_i, sequence_ptr, T) * scale[:, None]
            dx = tl.dot((between * later).to(dtype), dy_i, dx, input_precision=PRECISION)
    t = block * STEPS + tl.arange(0, STEPS)
    here = t < T - start
    tl.store(dgamma_ptr + own + t, _by_step(dgamma, STEPS, RANK), mask=here)
    dx += tl.load(skip_ptr + head) * dy.to(tl.float32)
    if expand_ptr is not None:
        plain = value_rows(x_ptr, None, row, rank, head, inside, stride_t, 0, P, R, BLOCK_P).to(tl.float32)
        r = tl.arange(0, RANK)
        part = (batch * tl.num_programs(1) + tl.program_id(1)) * H + head
        at = dexpand_ptr + (part * R + r)[:, None] * P + p[None, :]
        dexpand = over_steps(dx * plain, STEPS, RANK, BLOCK_P)
        tl.store(at, dexpand, mask=(r < R)[:, None] & (p < P)[None, :])
        vector = ((head * R + rank) * P)[:, None] + p[None, :]
        dx *= tl.load(expand_ptr + vector, mask=inside[:, None] & (p < P)[None, :], other=0.0)
    dx = over_ranks(dx, STEPS, RANK, BLOCK_P)
    out = dx_ptr + (first * H + head) * P + (t * H)[:, None] * P + p[None, :]
    tl.store(out, dx.to(dx_ptr.dtype.element_ty), mask=here[:, None] & (p < P)[None, :])
