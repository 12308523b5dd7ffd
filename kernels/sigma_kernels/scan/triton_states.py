"""States at the chunk borders: what each chunk adds, and the passes over the chunks, forward and backward.

Each state is kept in the frame of the phase at the start of its chunk, [B, H, C, N, P].
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import cos_sin
from sigma_kernels.scan.triton_tiles import entering_weight, leaving_weight, row_angles, turned_rows, value_rows


@triton.jit
def chunk_outer_kernel(
    matrix_ptr, bias_ptr, phase_ptr, x_ptr, expand_ptr, g_ptr, scale_ptr, sequence_ptr, out_ptr,
    T, H, stride_b, stride_t, stride_r, stride_h,
    S: tl.constexpr, P: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr,
    RANK: tl.constexpr, STEPS: tl.constexpr, BLOCKS: tl.constexpr,
    HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_m w_m k_m x_m^T over the rows of a chunk, [N, P]; grid (heads, chunks, batch * PARTS).

    With `scale_ptr` this is what the chunk adds to the state: w = scale e^{g_end - g}. Without, k and x are q and dY,
    and it is the gradient of the state that enters the chunk: w = e^g.
    """
    head = tl.program_id(0)
    chunk = tl.program_id(1)
    batch = (tl.program_id(2) // PARTS).to(tl.int64)
    pair = (tl.program_id(2) % PARTS) * HALF
    chunks = tl.num_programs(1)
    m = tl.arange(0, STEPS * RANK)
    rank = m % RANK
    start = chunk * STEPS * BLOCKS
    end = tl.minimum(start + STEPS * BLOCKS, T) - 1
    own = (batch * H + head) * T + start
    matrix_ptr += (batch * T + start) * (R * G * N)
    phase_ptr += own * S
    x_ptr += batch * stride_b + start.to(tl.int64) * stride_t + head.to(tl.int64) * stride_h
    low = tl.zeros((HALF, BLOCK_P), tl.float32)
    high = tl.zeros((HALF, BLOCK_P), tl.float32)
    for block in range(BLOCKS):
        row = block * STEPS + m // RANK
        step = start + row
        inside = (step < T) & (rank < R)
        cos, sin = row_angles(phase_ptr, row, inside, pair, S, HALF)
        k0, k1 = turned_rows(
            matrix_ptr, bias_ptr, cos, sin, row, rank, head // (H // G), head, inside, pair, N, G, R, HALF
        )
        x = value_rows(x_ptr, expand_ptr, row, rank, head, inside, stride_t, stride_r, P, R, BLOCK_P)
        g = tl.load(g_ptr + own + row, mask=inside, other=0.0)
        if scale_ptr is not None:
            weight = leaving_weight(g, tl.load(g_ptr + own + end - start), step, sequence_ptr, end, T)
            weight *= tl.load(scale_ptr + own + row, mask=inside, other=0.0)
        else:
            weight = entering_weight(g, step, sequence_ptr, start, T)
        dtype = x.dtype
        x = (x.to(tl.float32) * weight[:, None]).to(dtype)
        low = tl.dot(tl.trans(k0.to(dtype)), x, low, input_precision=PRECISION)
        high = tl.dot(tl.trans(k1.to(dtype)), x, high, input_precision=PRECISION)
    n = pair + tl.arange(0, HALF)
    p = tl.arange(0, BLOCK_P)
    split: tl.constexpr = (N + 1) // 2
    out = ((batch * H + head) * chunks + chunk) * (N * P) + n[:, None] * P + p[None, :]
    tl.store(out_ptr + out, low.to(out_ptr.dtype.element_ty), mask=(n < split)[:, None] & (p < P)[None, :])
    tl.store(
        out_ptr + out + split * P, high.to(out_ptr.dtype.element_ty), mask=(n < N // 2)[:, None] & (p < P)[None, :]
    )


@triton.jit
def _chunk_decay(g_ptr, sequence_ptr, chunk, steps, T):
    """e^{g_end}, or 0 where another sequence begins inside the chunk."""
    end = tl.minimum((chunk + 1) * steps, T) - 1
    decay = tl.exp2(tl.load(g_ptr + end))
    if sequence_ptr is not None:
        first = tl.load(sequence_ptr + chunk * steps - 1, mask=chunk > 0, other=-1)
        decay = tl.where(first == tl.load(sequence_ptr + end), decay, 0.0)
    return decay


@triton.jit
def state_pass_kernel(
    added_ptr, start_ptr, initial_ptr, final_ptr, g_ptr, total_ptr, sequence_ptr, T, H, chunks, steps,
    S: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """S <- Rot(-total phase) (e^{g_end} S + added) over the chunks; stores S before each and, fp32, after the last.

    Grid (B * H, pair blocks, P blocks): a program keeps both halves of its pairs in registers.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    p = tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)
    split: tl.constexpr = (N + 1) // 2
    low = (n < split)[:, None] & (p < P)[None, :]
    high = (n < N // 2)[:, None] & (p < P)[None, :]
    tile = n[:, None] * P + p[None, :]
    s0 = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    s1 = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    if initial_ptr is not None:
        s0 = tl.load(initial_ptr + row * (N * P) + tile, mask=low, other=0.0)
        s1 = tl.load(initial_ptr + row * (N * P) + tile + split * P, mask=high, other=0.0)
    for chunk in tl.range(0, chunks, num_stages=STAGES):
        at = (row * chunks + chunk) * (N * P) + tile
        a0 = tl.load(added_ptr + at, mask=low, other=0.0).to(tl.float32)
        a1 = tl.load(added_ptr + at + split * P, mask=high, other=0.0).to(tl.float32)
        total = tl.load(total_ptr + (row * chunks + chunk) * S + n, mask=n < S, other=0)
        tl.store(start_ptr + at, s0.to(start_ptr.dtype.element_ty), mask=low)
        tl.store(start_ptr + at + split * P, s1.to(start_ptr.dtype.element_ty), mask=high)
        decay = _chunk_decay(g_ptr + row * T, sequence_ptr, chunk, steps, T)
        cos, sin = cos_sin(total, tl.float32)
        e0 = decay * s0 + a0
        e1 = decay * s1 + a1
        s0 = e0 * cos[:, None] + e1 * sin[:, None]
        s1 = e1 * cos[:, None] - e0 * sin[:, None]
    tl.store(final_ptr + row * (N * P) + tile, s0, mask=low)
    tl.store(final_ptr + row * (N * P) + tile + split * P, s1, mask=high)


@triton.jit
def state_pass_backward_kernel(
    dstart_ptr, dend_ptr, start_ptr, final_ptr, dfinal_ptr, dinitial_ptr, g_ptr, total_ptr, sequence_ptr,
    decay_restart_ptr, phase_restart_ptr, T, H, chunks, steps,
    S: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The pass in reverse. dstart holds what each chunk's outputs send to the state that enters it.

    Stores the gradient of the state at each chunk's end, in the chunk's own frame, and the restarts of the suffix sums:
    <S, dS> for each pair block [B * H, C, pair blocks], and its turned form [B * H, C, S]. Needs BLOCK_P >= P.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    p = tl.arange(0, BLOCK_P)
    split: tl.constexpr = (N + 1) // 2
    low = (n < split)[:, None] & (p < P)[None, :]
    high = (n < N // 2)[:, None] & (p < P)[None, :]
    tile = n[:, None] * P + p[None, :]
    d0 = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    d1 = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    if dfinal_ptr is not None:
        d0 = tl.load(dfinal_ptr + row * (N * P) + tile, mask=low, other=0.0)
        d1 = tl.load(dfinal_ptr + row * (N * P) + tile + split * P, mask=high, other=0.0)
    s0 = tl.load(final_ptr + row * (N * P) + tile, mask=low, other=0.0)
    s1 = tl.load(final_ptr + row * (N * P) + tile + split * P, mask=high, other=0.0)
    for back in tl.range(0, chunks, num_stages=STAGES):
        chunk = chunks - 1 - back
        where = row * chunks + chunk
        at = where * (N * P) + tile
        tl.store(
            decay_restart_ptr + where * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.sum(s0 * d0 + s1 * d1, 1), 0)
        )
        tl.store(phase_restart_ptr + where * S + n, tl.sum(d0 * s1 - d1 * s0, 1), mask=n < S)
        total = tl.load(total_ptr + where * S + n, mask=n < S, other=0)
        cos, sin = cos_sin(total, tl.float32)
        e0 = d0 * cos[:, None] - d1 * sin[:, None]
        e1 = d1 * cos[:, None] + d0 * sin[:, None]
        tl.store(dend_ptr + at, e0.to(dend_ptr.dtype.element_ty), mask=low)
        tl.store(dend_ptr + at + split * P, e1.to(dend_ptr.dtype.element_ty), mask=high)
        decay = _chunk_decay(g_ptr + row * T, sequence_ptr, chunk, steps, T)
        d0 = decay * e0 + tl.load(dstart_ptr + at, mask=low, other=0.0).to(tl.float32)
        d1 = decay * e1 + tl.load(dstart_ptr + at + split * P, mask=high, other=0.0).to(tl.float32)
        s0 = tl.load(start_ptr + at, mask=low, other=0.0).to(tl.float32)
        s1 = tl.load(start_ptr + at + split * P, mask=high, other=0.0).to(tl.float32)
    tl.store(dinitial_ptr + row * (N * P) + tile, d0, mask=low)
    tl.store(dinitial_ptr + row * (N * P) + tile + split * P, d1, mask=high)
