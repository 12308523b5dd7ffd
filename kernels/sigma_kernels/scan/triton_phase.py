"""Phases and decays inside the chunks, from dt; and their suffix sums back.

All phases are relative to the start of their chunk, as is the state that enters it, so that chunks are independent
until the pass over states turns the state from one chunk's frame into the next one's. Phases are int32 turns in the
sums; what is stored is their upper half where the matrices are 16 bits wide (an error of 5e-5 radians).
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import tanh, turns_to_int32

LOG2E = tl.constexpr(1.4426950408889634)
TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def _theta(angle_ptr, row, pair, stride, mask):
    """Turns per unit of time, [M, BLOCK_S]."""
    angle = tl.load(angle_ptr + row[:, None] * stride + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    return 0.5 * tanh(angle)


@triton.jit
def phase_forward_kernel(
    angle_ptr, dt_ptr, log_decay_ptr, phase_ptr, total_ptr, g_ptr, T, H, S, stride_angle,
    HEADS: tl.constexpr, BLOCK_S: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, batch, head blocks). Reads the angle [B * T, S] and fp32 dt and log decay [B, H, T].

    Writes the running phase [B, H, T, S], the chunk's total int32 [B, H, C, S], and g = log2(e) cumsum(log decay).
    """
    chunk = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    step = chunk * STEPS + tl.arange(0, STEPS)
    pair = tl.arange(0, BLOCK_S)
    inside = step < T
    turning = inside[:, None] & (pair < S)[None, :]
    theta = _theta(angle_ptr, batch * T + step, pair, stride_angle, turning)
    for i in tl.range(0, HEADS, num_stages=STAGES):
        head = tl.program_id(2) * HEADS + i
        own = (batch * H + head) * T + step
        dt = tl.load(dt_ptr + own, mask=inside, other=0.0)
        log_decay = tl.load(log_decay_ptr + own, mask=inside, other=0.0)
        tl.store(g_ptr + own, tl.cumsum(log_decay, 0) * LOG2E, mask=inside)
        counts = turns_to_int32(dt[:, None] * theta)
        phase = tl.cumsum(counts, 0).to(tl.int32)
        if phase_ptr.dtype.element_ty == tl.int16:
            stored = ((phase + 32768) >> 16).to(tl.int16)
        else:
            stored = phase
        tl.store(phase_ptr + own[:, None] * S + pair[None, :], stored, mask=turning)
        total = tl.sum(counts, 0).to(tl.int32)
        at = ((batch * H + head) * tl.num_programs(0) + chunk) * S + pair
        tl.store(total_ptr + at, total, mask=pair < S)


@triton.jit
def _product(ones, x, EXACT: tl.constexpr):
    """A 0/1 matrix times x: in fp32, or with x as the sum of two bf16 numbers (within 2^-17), which is faster."""
    if EXACT:
        out = tl.dot(ones, x, input_precision="tf32x3")
    else:
        upper = x.to(tl.bfloat16)
        lower = (x - upper.to(tl.float32)).to(tl.bfloat16)
        out = tl.dot(ones.to(tl.bfloat16), upper)
        out = tl.dot(ones.to(tl.bfloat16), lower, out)
    return out


@triton.jit
def phase_backward_kernel(
    angle_ptr, dt_ptr, scale_ptr, sequence_ptr, rq_ptr, dscale_ptr, dphase_ptr,
    decay_restart_ptr, phase_restart_ptr, dlog_decay_ptr, ddt_ptr, dtheta_ptr,
    T, H, S, stride_angle, restart_blocks,
    HEADS: tl.constexpr, BLOCK_S: tl.constexpr, STEPS: tl.constexpr, BLOCK_RESTART: tl.constexpr, EXACT: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Suffix sums of the chunk, restarted at its end from the states' own products (the global sum cancels in bf16).

    d log_decay_t = sum_{s >= t} (<q_s, dq_s> - <k_s, dk_s>) + <S, dS> after the chunk; the phase likewise. Writes d log
    decay and the phase's share of d dt, fp32 [B, H, T], and d angle for each head block, fp32 [blocks, B, T, S]. Grid
    (chunks, batch, head blocks).
    """
    chunk = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(0)
    index = tl.arange(0, STEPS)
    step = chunk * STEPS + index
    pair = tl.arange(0, BLOCK_S)
    block = tl.arange(0, BLOCK_RESTART)
    inside = step < T
    turning = inside[:, None] & (pair < S)[None, :]
    ahead = index[None, :] >= index[:, None]
    leaving = inside
    if sequence_ptr is not None:
        sequence = tl.load(sequence_ptr + step, mask=inside, other=-1)
        last = tl.load(sequence_ptr + tl.minimum(chunk * STEPS + STEPS, T) - 1)
        ahead = ahead & (sequence[None, :] == sequence[:, None])
        leaving = sequence == last
    sums = tl.where(ahead, 1.0, 0.0)
    theta = _theta(angle_ptr, batch * T + step, pair, stride_angle, turning)
    dtheta = tl.zeros((STEPS, BLOCK_S), tl.float32)
    for i in tl.range(0, HEADS, num_stages=STAGES):
        head = tl.program_id(2) * HEADS + i
        own = (batch * H + head) * T + step
        at = (batch * H + head) * chunks + chunk
        r = tl.load(rq_ptr + own, mask=inside, other=0.0)
        r -= tl.load(scale_ptr + own, mask=inside, other=0.0) * tl.load(dscale_ptr + own, mask=inside, other=0.0)
        restart = tl.load(decay_restart_ptr + at * restart_blocks + block, mask=block < restart_blocks, other=0.0)
        dlog_decay = tl.sum(sums * r[None, :], 1) + tl.where(leaving, tl.sum(restart, 0), 0.0)
        tl.store(dlog_decay_ptr + own, dlog_decay, mask=inside)

        dphase = tl.load(dphase_ptr + own[:, None] * S + pair[None, :], mask=turning, other=0.0)
        turn = tl.load(phase_restart_ptr + at * S + pair, mask=pair < S, other=0.0)
        dturns = (_product(sums, dphase, EXACT) + tl.where(leaving[:, None], turn[None, :], 0.0)) * TWO_PI
        tl.store(ddt_ptr + own, tl.sum(dturns * theta, 1), mask=inside)
        dtheta += dturns * tl.load(dt_ptr + own, mask=inside, other=0.0)[:, None]
    out = ((tl.program_id(2) * tl.num_programs(1) + batch) * T + step)[:, None] * S + pair[None, :]
    tl.store(dtheta_ptr + out, dtheta * (0.5 - 2 * theta * theta), mask=turning)
