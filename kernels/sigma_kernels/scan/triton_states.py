"""States at the chunk borders: what each chunk adds, and the passes over the chunks, forward and backward.

Each state is kept in the frame of the phase at the start of its chunk, [B, H, C, N2, P], pairs side by side.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import cos_sin, exp2
from sigma_kernels.scan.triton_gate import ask_for_dy, dy_rows, gradient_rows, store_dy_rows
from sigma_kernels.scan.triton_prefetch import ask_for_matrix, ask_for_rows, later_rows
from sigma_kernels.scan.triton_ranks import (
    value_rows,
)
from sigma_kernels.scan.triton_tiles import (
    chunk_rows,
    entering_weight,
    group_of,
    leaving_weight,
    turned_rows,
)


@triton.jit
def _store_outer(
    out_ptr, k, x, pair, N2: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """[N2, P] = sum_m k_m x_m^T."""
    out = tl.dot(tl.trans(k), x, input_precision=PRECISION)
    n = 2 * pair + tl.arange(0, 2 * HALF)
    p = tl.arange(0, BLOCK_P)
    mask = (n < N2)[:, None] & (p < P)[None, :]
    tl.store(out_ptr + n[:, None] * P + p[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def chunk_outer_kernel(
    k_ptr, k_bias_ptr, phase_ptr, x_ptr, expand_x_ptr, g_ptr, scale_ptr, sequence_ptr, out_ptr,
    T, H, stride_b, stride_t, stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """What each chunk adds to the state: sum_m scale_m e^{g_end - g_m} k_m x_m^T.

    Grid (heads, chunks, batch).
    """
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    head = tl.program_id(0)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    M: tl.constexpr = STEPS * RANK
    N2: tl.constexpr = 2 * ((N + 1) // 2)
    start = chunk * STEPS
    end = tl.minimum(start + STEPS, T) - 1
    row, rank, inside = chunk_rows(start, T, R, STEPS, RANK)
    step = start + row
    own = (batch * H + head) * T + start
    phase_ptr += own * S
    k_ptr += (batch * T + start) * (R * G * N)
    group = group_of(head, H, G)
    x_ptr += batch * stride_b + start.to(tl.int64) * stride_t + head.to(tl.int64) * stride_h
    later = later_rows(start, T, STEPS, AHEAD)
    ask_for_rows(x_ptr, later, stride_t, P)
    ask_for_rows(phase_ptr, later, S, S)
    ask_for_matrix(k_ptr, head, later, R * G * N)
    x = value_rows(x_ptr, expand_x_ptr, rank, head, T - start, stride_t, P, R, BLOCK_P)
    g = tl.load(g_ptr + own + row, mask=inside, other=0.0)
    weight = leaving_weight(g, tl.load(g_ptr + own + end - start), step, sequence_ptr, end, T)
    weight *= tl.load(scale_ptr + own + row, mask=inside, other=0.0)
    # rounded once, not after the expansion too: y of rank 4 loses a tenth of its error
    x = (x * weight[:, None]).to(dtype)
    out_ptr += ((batch * H + head) * tl.num_programs(1) + chunk) * (N2 * P)
    for part in tl.static_range(PARTS):
        k = turned_rows(
            k_ptr, k_bias_ptr, phase_ptr, row, rank, group, head, inside, part * HALF, dtype, S, N, G, R, M, HALF
        )
        _store_outer(out_ptr, k, x, part * HALF, N2, P, HALF, BLOCK_P, PRECISION)


@triton.jit
def chunk_outer_backward_kernel(
    q_ptr, q_bias_ptr, phase_ptr, dout_ptr, z_ptr, expand_z_ptr, combine_ptr, dy_ptr, g_ptr, sequence_ptr, out_ptr,
    T, H, stride_b, stride_t, stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """What each chunk's outputs send to the state that enters it: sum_m e^{g_m} q_m dY_m^T; the same grid.

    Makes dY [B, T, R, H, P] from `dout_ptr`, or reads it where that is None: a norm's kernel made it.
    """
    dtype: tl.constexpr = dy_ptr.dtype.element_ty
    head = tl.program_id(0)
    chunk = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    M: tl.constexpr = STEPS * RANK
    N2: tl.constexpr = 2 * ((N + 1) // 2)
    start = chunk * STEPS
    row, rank, inside = chunk_rows(start, T, R, STEPS, RANK)
    step = start + row
    own = (batch * H + head) * T + start
    first = batch * T + start
    phase_ptr += own * S
    q_ptr += first * (R * G * N)
    group = group_of(head, H, G)
    later = later_rows(start, T, STEPS, AHEAD)
    ask_for_rows(phase_ptr, later, S, S)
    ask_for_matrix(q_ptr, head, later, R * G * N)
    if dout_ptr is not None:
        z_ptr += batch * stride_b + start.to(tl.int64) * stride_t + head.to(tl.int64) * stride_h
        ask_for_rows(z_ptr, later, stride_t, P)
        ask_for_rows(dout_ptr + (first * H + head) * P, later, H * P, P)
        dy = gradient_rows(
            dout_ptr, z_ptr, expand_z_ptr, combine_ptr, first, rank, head, T - start, H, stride_t, P, R, BLOCK_P
        ).to(dtype)
        store_dy_rows(dy_ptr, dy, first, row, rank, head, inside, H, P, R, BLOCK_P)
    else:
        ask_for_dy(dy_ptr, first, head, later, H, P, R)
        dy = dy_rows(dy_ptr, first, row, rank, head, inside, H, P, R, BLOCK_P)
    weight = entering_weight(tl.load(g_ptr + own + row, mask=inside, other=0.0), step, sequence_ptr, start, T)
    dy = (dy.to(tl.float32) * weight[:, None]).to(dy.dtype)
    out_ptr += ((batch * H + head) * tl.num_programs(1) + chunk) * (N2 * P)
    for part in tl.static_range(PARTS):
        q = turned_rows(
            q_ptr, q_bias_ptr, phase_ptr, row, rank, group, head, inside, part * HALF, dtype, S, N, G, R, M, HALF
        )
        _store_outer(out_ptr, q, dy, part * HALF, N2, P, HALF, BLOCK_P, PRECISION)


@triton.jit
def chunk_decay(g_ptr, sequence_ptr, chunk, steps, T):
    """e^{g_end}, or 0 where another sequence begins inside the chunk."""
    end = tl.minimum((chunk + 1) * steps, T) - 1
    decay = exp2(tl.load(g_ptr + end))
    if sequence_ptr is not None:
        first = tl.load(sequence_ptr + chunk * steps - 1, mask=chunk > 0, other=-1)
        decay = tl.where(first == tl.load(sequence_ptr + end), decay, 0.0)
    return decay


@triton.jit
def block_of_pairs(N: tl.constexpr, P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr):
    """This program's pairs, where they lie in [N, P] and in [N2, P], and which have a first and a second channel."""
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    low = (n < (N + 1) // 2)[:, None] & (p < P)[None, :]
    high = (n < N // 2)[:, None] & (p < P)[None, :]
    return n, n[:, None] * P + p[None, :], (2 * n)[:, None] * P + p[None, :], low, high


@triton.jit
def load_state(state_ptr, at, tile, low, high, N: tl.constexpr, P: tl.constexpr):
    """Both channels of the pairs of state `at` of [., N, P], fp32; zeros where `state_ptr` is None."""
    s0 = tl.zeros(tile.shape, tl.float32)
    s1 = tl.zeros(tile.shape, tl.float32)
    if state_ptr is not None:
        s0 = tl.load(state_ptr + at * (N * P) + tile, mask=low, other=0.0)
        s1 = tl.load(state_ptr + at * (N * P) + tile + (N + 1) // 2 * P, mask=high, other=0.0)
    return s0, s1


@triton.jit
def store_state(state_ptr, at, s0, s1, tile, low, high, N: tl.constexpr, P: tl.constexpr):
    """What `load_state` loads."""
    tl.store(state_ptr + at * (N * P) + tile, s0, mask=low)
    tl.store(state_ptr + at * (N * P) + tile + (N + 1) // 2 * P, s1, mask=high)


@triton.jit
def turned(s0, s1, total, BACK: tl.constexpr):
    """Rot(-total) of the pairs [BLOCK_N, BLOCK_P], or Rot(total) with BACK; `total` in counts of 2^-32 turn."""
    cos, sin = cos_sin(total, tl.float32)
    if BACK:
        return s0 * cos[:, None] - s1 * sin[:, None], s1 * cos[:, None] + s0 * sin[:, None]
    else:
        return s0 * cos[:, None] + s1 * sin[:, None], s1 * cos[:, None] - s0 * sin[:, None]


@triton.jit
def segment_of(row, chunks, length):
    """(first chunk, end, number of its state) of this program's segment of `length` chunks; None: there is one."""
    first, last, own = 0, chunks, row
    if length is not None:
        first = tl.program_id(2) * length
        last = tl.minimum(first + length, chunks)
        own = row * tl.num_programs(2) + tl.program_id(2)
    return first, last, own


@triton.jit
def state_pass_kernel(
    added_ptr, start_ptr, initial_ptr, final_ptr, g_ptr, total_ptr, sequence_ptr, T, H, chunks, steps, length,
    S: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """S <- Rot(-total phase) (e^{g_end} S + added) over the chunks; stores S before each and, fp32, after the last.

    Grid (B * H, pair blocks, segments): a program keeps both halves of its pairs in registers. Each segment of `length`
    chunks starts from its own initial state [B, H, segments, N, P]; None: there is one. Needs BLOCK_P >= P.
    """
    row = tl.program_id(0).to(tl.int64)
    first, last, own = segment_of(row, chunks, length)
    n, tile, border, low, high = block_of_pairs(N, P, BLOCK_N, BLOCK_P)
    split: tl.constexpr = (N + 1) // 2
    s0, s1 = load_state(initial_ptr, own, tile, low, high, N, P)
    for chunk in tl.range(first, last, num_stages=STAGES):
        at = (row * chunks + chunk) * (2 * split * P) + border
        a0 = tl.load(added_ptr + at, mask=low, other=0.0).to(tl.float32)
        a1 = tl.load(added_ptr + at + P, mask=low, other=0.0).to(tl.float32)
        total = tl.load(total_ptr + (row * chunks + chunk) * S + n, mask=n < S, other=0)
        tl.store(start_ptr + at, s0.to(start_ptr.dtype.element_ty), mask=low)
        tl.store(start_ptr + at + P, s1.to(start_ptr.dtype.element_ty), mask=low)
        decay = chunk_decay(g_ptr + row * T, sequence_ptr, chunk, steps, T)
        s0, s1 = turned(decay * s0 + a0, decay * s1 + a1, total, BACK=False)
    if length is not None:
        low = low & (last == chunks)
        high = high & (last == chunks)
    store_state(final_ptr, row, s0, s1, tile, low, high, N, P)


@triton.jit
def state_pass_backward_kernel(
    dstart_ptr, dend_ptr, start_ptr, final_ptr, dfinal_ptr, dinitial_ptr, g_ptr, total_ptr, sequence_ptr,
    decay_restart_ptr, phase_restart_ptr, T, H, chunks, steps, length,
    S: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The pass in reverse. dstart holds what each chunk's outputs send to the state that enters it.

    Stores the gradient of the state at each chunk's end, in the chunk's own frame, and the restarts of the suffix sums:
    <S, dS> for each pair block [B * H, C, pair blocks], and its turned form [B * H, C, S]. Needs BLOCK_P >= P.
    Segments as in `state_pass_kernel`, each with a `dfinal` of its own.
    """
    row = tl.program_id(0).to(tl.int64)
    first, last, own = segment_of(row, chunks, length)
    n, tile, border, low, high = block_of_pairs(N, P, BLOCK_N, BLOCK_P)
    split: tl.constexpr = (N + 1) // 2
    d0, d1 = load_state(dfinal_ptr, own, tile, low, high, N, P)
    s0, s1 = load_state(final_ptr, row, tile, low, high, N, P)
    if length is not None:  # noqa: SIM102 - known when it is compiled, which the other is not
        if last < chunks:  # the state at the end of this segment is the one that enters the next
            at = (row * chunks + last) * (2 * split * P) + border
            s0 = tl.load(start_ptr + at, mask=low, other=0.0).to(tl.float32)
            s1 = tl.load(start_ptr + at + P, mask=low, other=0.0).to(tl.float32)
    for back in tl.range(0, last - first, num_stages=STAGES):
        chunk = last - 1 - back
        where = row * chunks + chunk
        at = where * (2 * split * P) + border
        tl.store(
            decay_restart_ptr + where * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.sum(s0 * d0 + s1 * d1, 1), 0)
        )
        tl.store(phase_restart_ptr + where * S + n, tl.sum(d0 * s1 - d1 * s0, 1), mask=n < S)
        total = tl.load(total_ptr + where * S + n, mask=n < S, other=0)
        e0, e1 = turned(d0, d1, total, BACK=True)
        tl.store(dend_ptr + at, e0.to(dend_ptr.dtype.element_ty), mask=low)
        tl.store(dend_ptr + at + P, e1.to(dend_ptr.dtype.element_ty), mask=low)
        decay = chunk_decay(g_ptr + row * T, sequence_ptr, chunk, steps, T)
        d0 = decay * e0 + tl.load(dstart_ptr + at, mask=low, other=0.0).to(tl.float32)
        d1 = decay * e1 + tl.load(dstart_ptr + at + P, mask=low, other=0.0).to(tl.float32)
        s0 = tl.load(start_ptr + at, mask=low, other=0.0).to(tl.float32)
        s1 = tl.load(start_ptr + at + P, mask=low, other=0.0).to(tl.float32)
    if length is not None:
        low = low & (first == 0)
        high = high & (first == 0)
    store_state(dinitial_ptr, row, d0, d1, tile, low, high, N, P)
