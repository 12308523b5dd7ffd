"""From the states to the output: the dual form inside a chunk, D, norm and gate; and back to the gradient of Y."""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.prepare import NORM_EPS
from sigma_kernels.scan.triton_tiles import decay_between, entering_weight, row_angles, turned_rows, value_rows

EPS = tl.constexpr(NORM_EPS)


@triton.jit
def state_halves(state_ptr, pair, N: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr, BLOCK_P: tl.constexpr):
    """The channels pair .. pair + HALF of one state [N, P], and their partners: [HALF, BLOCK_P] twice."""
    n = pair + tl.arange(0, HALF)
    p = tl.arange(0, BLOCK_P)
    split: tl.constexpr = (N + 1) // 2
    at = state_ptr + n[:, None] * P + p[None, :]
    if (N // 2) % HALF == 0 and N % 2 == 0 and BLOCK_P == P:
        low = tl.load(at)
        high = tl.load(at + split * P)
    else:
        low = tl.load(at, mask=(n < split)[:, None] & (p < P)[None, :], other=0.0)
        high = tl.load(at + split * P, mask=(n < N // 2)[:, None] & (p < P)[None, :], other=0.0)
    return low, high


@triton.jit
def raw_output(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_ptr, g_ptr, scale_ptr, gamma_ptr, skip_ptr,
    state_ptr, sequence_ptr, head, start, block, T, H, stride_t,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, BLOCKS: tl.constexpr,
    HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Y of one block of rows, fp32 [M, BLOCK_P], before norm and gate; the rows' x, step, rank, and which exist.

    The pointers stand at the chunk's first step of this head.
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    m = tl.arange(0, STEPS * RANK)
    rank = m % RANK
    row = block * STEPS + m // RANK
    step = start + row
    inside = (step < T) & (rank < R)
    group = head // (H // G)
    g = tl.load(g_ptr + row, mask=inside, other=0.0)
    dots = tl.zeros((STEPS * RANK, STEPS * RANK), tl.float32)
    y = tl.zeros((STEPS * RANK, BLOCK_P), tl.float32)
    for part in tl.static_range(PARTS):
        cos, sin = row_angles(phase_ptr, row, inside, part * HALF, S, HALF)
        k0, k1 = turned_rows(k_ptr, k_bias_ptr, cos, sin, row, rank, group, head, inside, part * HALF, N, G, R, HALF)
        k0 = k0.to(dtype)
        k1 = k1.to(dtype)
        q0, q1 = turned_rows(q_ptr, q_bias_ptr, cos, sin, row, rank, group, head, inside, part * HALF, N, G, R, HALF)
        q0 = q0.to(dtype)
        q1 = q1.to(dtype)
        dots = tl.dot(q0, tl.trans(k0), dots, input_precision=PRECISION)
        dots = tl.dot(q1, tl.trans(k1), dots, input_precision=PRECISION)
        s0, s1 = state_halves(state_ptr, part * HALF, N, P, HALF, BLOCK_P)
        y = tl.dot(q0, s0, y, input_precision=PRECISION)
        y = tl.dot(q1, s1, y, input_precision=PRECISION)
    y *= entering_weight(g, step, sequence_ptr, start, T)[:, None]

    scale = tl.load(scale_ptr + row, mask=inside, other=0.0)
    gamma = tl.load(gamma_ptr + row, mask=inside, other=0.0)
    weight = decay_between(g, g, step, step, sequence_ptr, T) * scale[None, :]
    weight += tl.where(step[:, None] == step[None, :], gamma[:, None], 0.0)
    x = value_rows(x_ptr, expand_ptr, row, rank, head, inside, stride_t, 0, P, R, BLOCK_P)
    y = tl.dot((dots * weight).to(dtype), x, y, input_precision=PRECISION)
    if BLOCKS > 1:
        for j in range(0, block):
            row_j = j * STEPS + m // RANK
            inside_j = (start + row_j < T) & (rank < R)
            between = tl.zeros((STEPS * RANK, STEPS * RANK), tl.float32)
            for part in tl.static_range(PARTS):
                cos_i, sin_i = row_angles(phase_ptr, row, inside, part * HALF, S, HALF)
                r0, r1 = turned_rows(
                    q_ptr, q_bias_ptr, cos_i, sin_i, row, rank, group, head, inside, part * HALF, N, G, R, HALF
                )
                cos_j, sin_j = row_angles(phase_ptr, row_j, inside_j, part * HALF, S, HALF)
                e0, e1 = turned_rows(
                    k_ptr, k_bias_ptr, cos_j, sin_j, row_j, rank, group, head, inside_j, part * HALF, N, G, R, HALF
                )
                between = tl.dot(r0.to(dtype), tl.trans(e0.to(dtype)), between, input_precision=PRECISION)
                between = tl.dot(r1.to(dtype), tl.trans(e1.to(dtype)), between, input_precision=PRECISION)
            g_j = tl.load(g_ptr + row_j, mask=inside_j, other=0.0)
            scale_j = tl.load(scale_ptr + row_j, mask=inside_j, other=0.0)
            between *= decay_between(g, g_j, step, start + row_j, sequence_ptr, T) * scale_j[None, :]
            x_j = value_rows(x_ptr, expand_ptr, row_j, rank, head, inside_j, stride_t, 0, P, R, BLOCK_P)
            y = tl.dot(between.to(dtype), x_j, y, input_precision=PRECISION)
    return y + tl.load(skip_ptr + head) * x.to(tl.float32), x, row, rank, inside


@triton.jit
def over_ranks(rows, STEPS: tl.constexpr, RANK: tl.constexpr, BLOCK_P: tl.constexpr):
    """[STEPS * RANK, P] -> the sum over the ranks [STEPS, P]."""
    if RANK == 1:
        out = rows
    else:
        out = tl.sum(tl.reshape(rows, (STEPS, RANK, BLOCK_P)), 1)
    return out


@triton.jit
def over_steps(rows, STEPS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr):
    """[STEPS * RANK, WIDTH] -> the sum over the steps [RANK, WIDTH]."""
    if RANK == 1:
        out = tl.sum(rows, 0)[None, :]
    else:
        out = tl.sum(tl.reshape(rows, (STEPS, RANK, WIDTH)), 0)
    return out


@triton.jit
def scan_output_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, z_ptr, expand_x_ptr, expand_z_ptr, combine_ptr,
    g_ptr, scale_ptr, gamma_ptr, skip_ptr, norm_ptr, state_ptr, sequence_ptr, out_ptr, T, H,
    x_stride_b, x_stride_t, x_stride_h, z_stride_b, z_stride_t, z_stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, BLOCKS: tl.constexpr,
    HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [B, T, H, P] = sum_r combine_r norm(Y_r) SiLU(z z_r); grid (heads, chunks * blocks, batch)."""
    head = tl.program_id(0)
    chunk = tl.program_id(1) // BLOCKS
    batch = tl.program_id(2).to(tl.int64)
    start = chunk * STEPS * BLOCKS
    own = (batch * H + head) * T + start
    first = batch * T + start
    state = ((batch * H + head) * (tl.num_programs(1) // BLOCKS) + chunk) * (N * P)
    y, _, row, rank, inside = raw_output(
        q_ptr + first * (R * G * N), k_ptr + first * (R * G * N), q_bias_ptr, k_bias_ptr, phase_ptr + own * S,
        x_ptr + batch * x_stride_b + start.to(tl.int64) * x_stride_t + head.to(tl.int64) * x_stride_h, expand_x_ptr,
        g_ptr + own, scale_ptr + own, gamma_ptr + own, skip_ptr, state_ptr + state, sequence_ptr,
        head, start, tl.program_id(1) % BLOCKS, T, H, x_stride_t,
        S, P, N, G, R, RANK, STEPS, BLOCKS, HALF, PARTS, BLOCK_P, PRECISION,
    )  # fmt: skip
    p = tl.arange(0, BLOCK_P)
    if norm_ptr is not None:
        y *= tl.rsqrt(tl.sum(y * y, 1) / P + EPS)[:, None]
        y *= tl.load(norm_ptr + head * P + p, mask=p < P, other=0.0)[None, :]
    z_ptr += batch * z_stride_b + start.to(tl.int64) * z_stride_t + head.to(tl.int64) * z_stride_h
    z = value_rows(z_ptr, None, row, rank, head, inside, z_stride_t, 0, P, R, BLOCK_P).to(tl.float32)
    vector = ((head * R + rank) * P)[:, None] + p[None, :]
    mask = inside[:, None] & (p < P)[None, :]
    if expand_z_ptr is not None:
        z *= tl.load(expand_z_ptr + vector, mask=mask, other=0.0)
    y *= z * tl.sigmoid(z)
    if combine_ptr is not None:
        y *= tl.load(combine_ptr + vector, mask=mask, other=0.0)
    y = over_ranks(y, STEPS, RANK, BLOCK_P)
    t = tl.program_id(1) * STEPS + tl.arange(0, STEPS)
    out = ((batch * T + t) * H + head)[:, None] * P + p[None, :]
    tl.store(out_ptr + out, y.to(out_ptr.dtype.element_ty), mask=(t < T)[:, None] & (p < P)[None, :])


@triton.jit
def output_backward_kernel(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, x_ptr, z_ptr, expand_x_ptr, expand_z_ptr, combine_ptr,
    g_ptr, scale_ptr, gamma_ptr, skip_ptr, norm_ptr, state_ptr, sequence_ptr,
    dout_ptr, dy_ptr, dz_ptr, dskip_ptr, dnorm_ptr, dexpand_z_ptr, dcombine_ptr, T, H,
    x_stride_b, x_stride_t, x_stride_h, z_stride_b, z_stride_t, z_stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, BLOCKS: tl.constexpr,
    HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Recomputes Y and goes back through combination, gate and norm; same grid as the forward.

    Stores dY as rows [B, T, R, H, P], dz [B, T, H, P], and one partial sum for each program (the first axis is
    batch * blocks): dskip [., H], dnorm [., H, P], dexpand_z and dcombine [., H, R, P].
    """
    head = tl.program_id(0)
    chunk = tl.program_id(1) // BLOCKS
    batch = tl.program_id(2).to(tl.int64)
    start = chunk * STEPS * BLOCKS
    own = (batch * H + head) * T + start
    first = batch * T + start
    state = ((batch * H + head) * (tl.num_programs(1) // BLOCKS) + chunk) * (N * P)
    y, x, row, rank, inside = raw_output(
        q_ptr + first * (R * G * N), k_ptr + first * (R * G * N), q_bias_ptr, k_bias_ptr, phase_ptr + own * S,
        x_ptr + batch * x_stride_b + start.to(tl.int64) * x_stride_t + head.to(tl.int64) * x_stride_h, expand_x_ptr,
        g_ptr + own, scale_ptr + own, gamma_ptr + own, skip_ptr, state_ptr + state, sequence_ptr,
        head, start, tl.program_id(1) % BLOCKS, T, H, x_stride_t,
        S, P, N, G, R, RANK, STEPS, BLOCKS, HALF, PARTS, BLOCK_P, PRECISION,
    )  # fmt: skip
    p = tl.arange(0, BLOCK_P)
    mask = inside[:, None] & (p < P)[None, :]
    partial = (batch * tl.num_programs(1) + tl.program_id(1)) * H + head
    out_row = (row * H)[:, None] * P + p[None, :]
    dout = tl.load(dout_ptr + (first * H + head) * P + out_row, mask=mask, other=0.0).to(tl.float32)
    z_ptr += batch * z_stride_b + start.to(tl.int64) * z_stride_t + head.to(tl.int64) * z_stride_h
    z = value_rows(z_ptr, None, row, rank, head, inside, z_stride_t, 0, P, R, BLOCK_P).to(tl.float32)
    vector = ((head * R + rank) * P)[:, None] + p[None, :]
    gate_in = z
    if expand_z_ptr is not None:
        gate_in = z * tl.load(expand_z_ptr + vector, mask=mask, other=0.0)
    sigmoid = tl.sigmoid(gate_in)
    normed = y
    rstd = tl.full((STEPS * RANK,), 1.0, tl.float32)
    weighted = y
    if norm_ptr is not None:
        rstd = tl.rsqrt(tl.sum(y * y, 1) / P + EPS)
        normed = y * rstd[:, None]
        weighted = normed * tl.load(norm_ptr + head * P + p, mask=p < P, other=0.0)[None, :]
    if combine_ptr is not None:
        dcombine = tl.where(mask, dout * weighted * gate_in * sigmoid, 0.0)
        _store_by_rank(dcombine_ptr, partial, dcombine, STEPS, RANK, R, P, BLOCK_P)
        dout *= tl.load(combine_ptr + vector, mask=mask, other=0.0)
    dgate = tl.where(mask, dout * weighted * sigmoid * (1 + gate_in * (1 - sigmoid)), 0.0)
    dz = dgate
    if expand_z_ptr is not None:
        _store_by_rank(dexpand_z_ptr, partial, dgate * z, STEPS, RANK, R, P, BLOCK_P)
        dz = dgate * tl.load(expand_z_ptr + vector, mask=mask, other=0.0)
    dz = over_ranks(dz, STEPS, RANK, BLOCK_P)
    t = tl.program_id(1) * STEPS + tl.arange(0, STEPS)
    tl.store(
        dz_ptr + ((batch * T + t) * H + head)[:, None] * P + p[None, :], dz.to(dz_ptr.dtype.element_ty),
        mask=(t < T)[:, None] & (p < P)[None, :],
    )  # fmt: skip
    dy = dout * gate_in * sigmoid
    if norm_ptr is not None:
        tl.store(dnorm_ptr + partial * P + p, tl.sum(tl.where(mask, dy * normed, 0.0), 0), mask=p < P)
        dy *= tl.load(norm_ptr + head * P + p, mask=p < P, other=0.0)[None, :]
        dy = rstd[:, None] * (dy - normed * (tl.sum(dy * normed, 1) / P)[:, None])
    dy = tl.where(mask, dy, 0.0)
    tl.store(dskip_ptr + partial, tl.sum(tl.sum(dy * x.to(tl.float32), 1), 0))
    dy_row = ((row * R + rank) * H)[:, None] * P + p[None, :]
    tl.store(dy_ptr + (first * R * H + head) * P + dy_row, dy.to(dy_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _store_by_rank(
    out_ptr, partial, rows, STEPS: tl.constexpr, RANK: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The sum over the steps, for each rank: [STEPS * RANK, P] -> out[partial], [R, P]."""
    total = over_steps(rows, STEPS, RANK, BLOCK_P)
    r = tl.arange(0, RANK)
    p = tl.arange(0, BLOCK_P)
    out = (partial * R + r)[:, None] * P + p[None, :]
    tl.store(out_ptr + out, total, mask=(r < R)[:, None] & (p < P)[None, :])
