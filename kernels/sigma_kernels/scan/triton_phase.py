"""Phases and decays inside the chunks, from dt; and their suffix sums back.

All phases are relative to the start of their chunk, as is the state that enters it, so that chunks are independent
until the pass over states turns the state from one chunk's frame into the next one's. Phases are int32 turns in the
sums; what is stored is their upper half where the matrices are 16 bits wide (an error of 5e-5 radians).

A thread owns pairs of heads and goes through the steps one after another: sums over steps need no other thread. What
a few steps read is loaded before any of them is summed, so that the loads wait together.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import RADIANS_PER_COUNT, counts_to_int32

LOG2E = tl.constexpr(1.4426950408889634)
PI = tl.constexpr(math.pi)
HALF_CIRCLES_PER_COUNT = tl.constexpr(2.0**-31)


@triton.jit
def phase_forward_kernel(
    rate_ptr, dt_ptr, log_decay_ptr, phase_ptr, total_ptr, g_ptr, T, H, S,
    HEADS: tl.constexpr, BLOCK_S: tl.constexpr, STEPS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, batch, head blocks). Reads the rate [B, T, S], dt and log decay [B, H, T], all fp32.

    Writes the running phase [B, H, T, S], the chunk's total int32 [B, H, C, S], and g = log2(e) cumsum(log decay).
    """
    chunk = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    known = head < H
    pair = tl.arange(0, BLOCK_S)[None, :]
    row = (batch * H + head) * T
    turning = known[:, None] & (pair < S)

    start = chunk * STEPS
    step = start + tl.arange(0, STEPS)[None, :]
    inside = known[:, None] & (step < T)
    log_decay = tl.load(log_decay_ptr + row[:, None] + step, mask=inside, other=0.0)
    tl.store(g_ptr + row[:, None] + step, tl.cumsum(log_decay, 1) * LOG2E, mask=inside)

    # the stored half of a phase is rounded: half of its last place lies in the running sum from the start
    rounding: tl.constexpr = 32768 if phase_ptr.dtype.element_ty == tl.int16 else 0
    running = tl.zeros((HEADS, BLOCK_S), tl.int32) + rounding
    own_rate = rate_ptr + batch * T * S + tl.broadcast_to(pair, (HEADS, BLOCK_S))
    own_phase = phase_ptr + row[:, None] * S + pair
    for first in tl.range(start, tl.minimum(start + STEPS, T), AT_ONCE):
        rates = ()
        dts = ()
        for k in tl.static_range(AT_ONCE):
            near = tl.minimum(first + k, T - 1)
            rates += (tl.load(own_rate + near * S, mask=turning, other=0.0),)
            dt = tl.load(dt_ptr + row + near, mask=known, other=0.0)
            dts += (tl.where(first + k < T, dt, 0.0),)
        for k in tl.static_range(AT_ONCE):
            running += counts_to_int32(dts[k][:, None] * rates[k])
            stored = running
            if rounding > 0:
                stored = (running >> 16).to(tl.int16)
            tl.store(own_phase + (first + k) * S, stored, mask=turning & (first + k < T))
    at = (batch * H + head) * tl.num_programs(0) + chunk
    tl.store(total_ptr + at[:, None] * S + pair, running - rounding, mask=turning)


@triton.jit
def _same_sequence(sequence_ptr, step, last):
    """Whether what is summed up behind `step` belongs to its sequence; the sums start at `last`, with its own."""
    return tl.load(sequence_ptr + tl.minimum(step, last)) == tl.load(sequence_ptr + tl.minimum(step + 1, last))


@triton.jit
def _add_open(behind, behind_open, x, x_open):
    """One step of a sum from the end, which ends where a step is not open to those behind it."""
    return tl.where(x_open, x + behind, x), x_open & behind_open


@triton.jit
def _decay_backward(
    scale_ptr, sequence_ptr, rq_ptr, dscale_ptr, restart_ptr, dlog_decay_ptr, row, at, known, start, last,
    restart_blocks, STEPS: tl.constexpr, BLOCK_RESTART: tl.constexpr,
):  # fmt: skip
    """d log decay of the chunk's steps for some heads."""
    step = start + tl.arange(0, STEPS)[None, :]
    inside = known[:, None] & (step <= last)
    own = row[:, None] + step
    r = tl.load(rq_ptr + own, mask=inside, other=0.0)
    r -= tl.load(scale_ptr + own, mask=inside, other=0.0) * tl.load(dscale_ptr + own, mask=inside, other=0.0)
    block = tl.arange(0, BLOCK_RESTART)[None, :]
    restarts = restart_ptr + at[:, None] * restart_blocks + block
    restart = tl.sum(tl.load(restarts, mask=known[:, None] & (block < restart_blocks), other=0.0), 1)
    r += tl.where(step == last, restart[:, None], 0.0)
    if sequence_ptr is None:
        dlog_decay = tl.cumsum(r, 1, reverse=True)
    else:
        open = tl.broadcast_to(_same_sequence(sequence_ptr, step, last), r.shape)
        dlog_decay, _ = tl.associative_scan((r, open), 1, _add_open, reverse=True)
    tl.store(dlog_decay_ptr + own, dlog_decay, mask=inside)


@triton.jit
def _columns(xs, COUNT: tl.constexpr):
    """[M, COUNT] from COUNT (a power of two) vectors [M], in their order."""
    rows: tl.constexpr = xs[0].shape[0]
    for halving in tl.static_range(1, COUNT.bit_length()):
        joined = ()
        for k in tl.static_range(COUNT >> halving):
            joined += (tl.join(xs[k], xs[k + (COUNT >> halving)]),)
        xs = joined
    return tl.reshape(xs[0], (rows, COUNT))


@triton.jit
def phase_backward_kernel(
    rate_ptr, dt_ptr, scale_ptr, sequence_ptr, rq_ptr, dscale_ptr, dphase_ptr,
    decay_restart_ptr, phase_restart_ptr, dlog_decay_ptr, ddt_ptr, dangle_ptr,
    T, H, S, restart_blocks,
    HEADS: tl.constexpr, BLOCK_S: tl.constexpr, STEPS: tl.constexpr, BLOCK_RESTART: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Suffix sums of the chunk, restarted at its end from the states' own products (the global sum cancels in bf16).

    d log_decay_t = sum_{s >= t} (<q_s, dq_s> - <k_s, dk_s>) + <S, dS> after the chunk; the phase likewise. Writes d log
    decay and the phase's share of d dt, fp32 [B, H, T], and d angle for each head block, fp32 [blocks, B, T, S]. Grid
    (chunks, batch, head blocks).
    """
    chunk = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    head = tl.program_id(2) * HEADS + tl.arange(0, HEADS)
    known = head < H
    row = (batch * H + head) * T
    at = (batch * H + head) * tl.num_programs(0) + chunk
    start = chunk * STEPS
    last = tl.minimum(start + STEPS, T) - 1
    _decay_backward(
        scale_ptr, sequence_ptr, rq_ptr, dscale_ptr, decay_restart_ptr, dlog_decay_ptr, row, at, known, start, last,
        restart_blocks, STEPS, BLOCK_RESTART,
    )  # fmt: skip

    pair = tl.broadcast_to(tl.arange(0, BLOCK_S)[None, :], (HEADS, BLOCK_S))
    turning = known[:, None] & (pair < S)
    stored = (tl.arange(0, HEADS) == 0)[:, None] & (pair < S)
    offset = tl.arange(0, AT_ONCE)[None, :]
    own_rate = rate_ptr + batch * T * S + pair
    own_angle = dangle_ptr + (tl.program_id(2) * tl.num_programs(1) + batch) * T * S + pair
    drunning = tl.load(phase_restart_ptr + at[:, None] * S + pair, mask=turning, other=0.0)
    blocks = tl.cdiv(last + 1 - start, AT_ONCE)
    for i in tl.range(0, blocks):
        first = start + (blocks - 1 - i) * AT_ONCE
        rates = ()
        dts = ()
        dphases = ()
        for k in tl.static_range(AT_ONCE):
            near = tl.minimum(first + k, last)
            rates += (tl.load(own_rate + near * S, mask=pair < S, other=0.0),)
            dts += (tl.load(dt_ptr + row + near, mask=known, other=0.0),)
            own = dphase_ptr + (row[:, None] + near) * S + pair
            dphases += (tl.load(own, mask=turning & (first + k <= last), other=0.0),)
        ddts = ()
        for k in tl.static_range(AT_ONCE - 1, -1, -1):
            if sequence_ptr is not None:
                drunning = tl.where(_same_sequence(sequence_ptr, first + k, last), drunning, 0.0)
            drunning += dphases[k]
            ddts = (tl.sum(drunning * rates[k], 1) * RADIANS_PER_COUNT,) + ddts  # noqa: RUF005, no star in Triton
            # d (pi tanh(angle)) = pi (1 - tanh^2) d angle
            tanh = rates[k] * HALF_CIRCLES_PER_COUNT
            dangle = tl.sum(drunning * dts[k][:, None], 0)[None, :] * (PI - PI * tanh * tanh)
            tl.store(own_angle + (first + k) * S, dangle, mask=stored & (first + k <= last))
        ddt = _columns(ddts, AT_ONCE)
        tl.store(ddt_ptr + row[:, None] + first + offset, ddt, mask=known[:, None] & (first + offset <= last))
