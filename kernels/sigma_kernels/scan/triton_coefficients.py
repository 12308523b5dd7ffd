"""From the control projection to the recurrence's numbers, and back: element by element, turned from [T, H] to [H, T].

dt = softplus(dd_dt + bias)    gamma = lambda dt    scale = gamma + (1 - lambda) dt of the next step
log decay = -dt f(dd_a)        lambda = sigmoid(trap)
rate = 2^31 tanh(angle), the counts of 2^-32 turn per unit of time (backward: in triton_phase.py)
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import heavy_tail, softplus, tanh
from sigma_kernels.scan.prepare import DECAY_FLOOR

FLOOR = tl.constexpr(DECAY_FLOOR)
HALF_TURN = tl.constexpr(2.0**31)


@triton.jit
def _load(ptr, row, head, stride, mask):
    return tl.load(ptr + row[:, None] * stride + head[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _valid(valid_ptr, row, mask):
    valid = mask
    if valid_ptr is not None:
        valid = mask & (tl.load(valid_ptr + row, mask=row >= 0, other=0) != 0)[:, None]
    return valid


@triton.jit
def _neighbour(index_ptr, row, step, offset: tl.constexpr, inside, T):
    """The step after (offset 1) or before (-1) each step, and whether there is one; by the table of a padded batch."""
    if index_ptr is None:
        other = step + offset
    else:
        other = tl.load(index_ptr + row, mask=inside, other=T)
    return other, inside & (other >= 0) & (other < T)


@triton.jit
def coefficients_kernel(
    dd_dt_ptr, dd_a_ptr, trap_ptr, angle_ptr, bias_ptr, valid_ptr, next_ptr,
    dt_ptr, log_decay_ptr, scale_ptr, gamma_ptr, rate_ptr,
    T, H, S, stride_dt, stride_a, stride_trap, stride_angle,
    STEPS: tl.constexpr, HEADS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Grid (step blocks, head blocks, batch); writes four fp32 [B, H, T], and the rate, fp32 [B, T, S]."""
    step = tl.program_id(0) * STEPS + tl.arange(0, STEPS)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    batch = tl.program_id(2).to(tl.int64)
    inside = step < T
    known = head < H
    row = tl.where(inside, batch * T + step, -1)
    mask = _valid(valid_ptr, row, inside[:, None] & known[None, :])
    after, follows = _neighbour(next_ptr, row, step, 1, inside, T)
    row_after = batch * T + after
    bias = tl.load(bias_ptr + head, mask=known, other=0.0)[None, :]
    dt = tl.where(mask, softplus(_load(dd_dt_ptr, row, head, stride_dt, mask) + bias), 0.0)
    log_decay = -dt * heavy_tail(_load(dd_a_ptr, row, head, stride_a, mask))
    gamma = dt * tl.sigmoid(_load(trap_ptr, row, head, stride_trap, mask))
    follows = follows[:, None] & known[None, :]
    left = tl.where(follows, softplus(_load(dd_dt_ptr, row_after, head, stride_dt, follows) + bias), 0.0)
    left *= tl.sigmoid(-_load(trap_ptr, row_after, head, stride_trap, follows))
    out = (batch * H + head)[None, :] * T + step[:, None]
    stored = inside[:, None] & known[None, :]
    tl.store(dt_ptr + out, dt, mask=stored)
    tl.store(log_decay_ptr + out, log_decay, mask=stored)
    tl.store(scale_ptr + out, gamma + left, mask=stored)
    tl.store(gamma_ptr + out, gamma, mask=stored)
    if tl.program_id(1) == 0:
        pair = tl.arange(0, BLOCK_S)
        turning = inside[:, None] & (pair < S)[None, :]
        angle = _load(angle_ptr, row, pair, stride_angle, _valid(valid_ptr, row, turning))
        tl.store(rate_ptr + row[:, None] * S + pair[None, :], tanh(angle) * HALF_TURN, mask=turning)


@triton.jit
def coefficients_backward_kernel(
    dd_dt_ptr, dd_a_ptr, trap_ptr, bias_ptr, valid_ptr, previous_ptr, ddt_ptr, dlog_decay_ptr, dscale_ptr, dgamma_ptr,
    ddd_dt_ptr, ddd_a_ptr, dtrap_ptr, dbias_ptr, T, H, stride_dt, stride_a, stride_trap,
    STEPS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The same grid; d dt_bias goes out in parts [., H]."""
    step = tl.program_id(0) * STEPS + tl.arange(0, STEPS)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    batch = tl.program_id(2).to(tl.int64)
    inside = step < T
    known = head < H
    stored = inside[:, None] & known[None, :]
    row = tl.where(inside, batch * T + step, -1)
    mask = _valid(valid_ptr, row, stored)
    before, precedes = _neighbour(previous_ptr, row, step, -1, inside, T)
    precedes = precedes[:, None] & known[None, :]
    own = (batch * H + head)[None, :] * T + step[:, None]
    earlier = (batch * H + head)[None, :] * T + before[:, None]
    ddt = tl.load(ddt_ptr + own, mask=stored, other=0.0)
    dright = tl.load(dgamma_ptr + own, mask=stored, other=0.0) + tl.load(dscale_ptr + own, mask=stored, other=0.0)
    dleft = tl.load(dscale_ptr + earlier, mask=precedes, other=0.0)
    dlog_decay = tl.load(dlog_decay_ptr + own, mask=stored, other=0.0)
    raw = _load(dd_dt_ptr, row, head, stride_dt, mask) + tl.load(bias_ptr + head, mask=known, other=0.0)[None, :]
    dt = tl.where(mask, softplus(raw), 0.0)
    a = _load(dd_a_ptr, row, head, stride_a, mask)
    weight = tl.sigmoid(_load(trap_ptr, row, head, stride_trap, mask))
    tail = heavy_tail(a)
    ddd_dt = (ddt + weight * dright + (1 - weight) * dleft - tail * dlog_decay) * tl.sigmoid(raw)
    ddd_dt = tl.where(mask, ddd_dt, 0.0)
    slope = tl.where(a >= 0, 1.0, tl.where(tail > FLOOR, tail * tail, 0.0))
    dtrap = dt * (dright - dleft) * weight * (1 - weight)
    out = row[:, None] * H + head[None, :]
    tl.store(ddd_dt_ptr + out, ddd_dt.to(ddd_dt_ptr.dtype.element_ty), mask=stored)
    tl.store(ddd_a_ptr + out, (-dt * dlog_decay * slope).to(ddd_a_ptr.dtype.element_ty), mask=stored)
    tl.store(dtrap_ptr + out, dtrap.to(dtrap_ptr.dtype.element_ty), mask=stored)
    part = batch * tl.num_programs(0) + tl.program_id(0)
    tl.store(dbias_ptr + part * H + head, tl.sum(ddd_dt, 0), mask=known)
