"""The complex recurrence h_t = a_t h_{t-1} + u_t, u_t = b_t x_t, in Triton, by chunks of time and segments of chunks.

A step is the map h -> a h + u; maps compose without any division, so a = 0 and |a| > 1 are nothing special. Inside a
chunk an associative scan composes them, from chunk to chunk h is carried. Few lanes would leave most of the GPU idle:
then the time is cut into segments, a first pass composes each segment's map, and the second starts each segment from
the maps before it. Sums over time go through buffers in a fixed order: the same bits in every run.

Backward, with g_t = dL/dh_t as a complex number: g_t = dy_t + conj(a_{t+1}) g_{t+1}, the same recurrence from the end;
da_t = g_t conj(h_{t-1}), db_t = g_t conj(x_t), dx_t = g_t conj(b_t), dstate = g_0 conj(a_0).
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(ptr, at, mask):
    """(real, imaginary) of interleaved numbers at the offsets `at`; 0 where `mask` is not set."""
    return tl.split(tl.load(ptr + at[:, :, None] + tl.arange(0, 2)[None, None, :], mask=mask[:, :, None], other=0.0))


@triton.jit
def _store(ptr, at, re, im, mask):
    tl.store(ptr + at[:, :, None] + tl.arange(0, 2)[None, None, :], tl.join(re, im), mask=mask[:, :, None])


@triton.jit
def _times(ar, ai, br, bi):
    return ar * br - ai * bi, ar * bi + ai * br


@triton.jit
def _times_conj(ar, ai, br, bi):
    """a conj(b)."""
    return ar * br + ai * bi, ai * br - ar * bi


@triton.jit
def _apply(ar, ai, br, bi, hr, hi):
    """a h + b. An h of 0 stays out of it: the product of many |a| > 1 may have overflowed."""
    re, im = _times(ar, ai, hr, hi)
    zero = (hr == 0) & (hi == 0)
    return tl.where(zero, br, re + br), tl.where(zero, bi, im + bi)


@triton.jit
def _compose(ar, ai, br, bi, cr, ci, dr, di):
    """The map (a, b) and then the map (c, d)."""
    pr, pi = _times(cr, ci, ar, ai)
    qr, qi = _apply(cr, ci, dr, di, br, bi)
    return pr, pi, qr, qi


@triton.jit
def _maps(
    u_ptr, a_ptr, b_ptr, lane, step, lanes, steps, stride_u, stride_ut, stride_a, stride_at, stride_b, stride_bt,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """The maps of a tile, composed along the chunk, and its offsets in time. Beyond the end stands the identity.

    Forward u = x, and b its factor. In reverse, step i is time T - 1 - i, u = dy, and a comes from one step later.
    """
    time = (steps - 1 - step if REVERSE else step).to(tl.int64)
    inside = (lane < lanes)[:, None] & (step < steps)[None, :]
    ur, ui = _load(u_ptr, lane[:, None] * stride_u + time[None, :] * stride_ut, inside)
    if REVERSE:
        has_a = inside & (step > 0)[None, :]
        ar, ai = _load(a_ptr, lane[:, None] * stride_a + (time + 1)[None, :] * stride_at, has_a)
        ai = -ai
    else:
        has_a = inside
        ar, ai = _load(a_ptr, lane[:, None] * stride_a + time[None, :] * stride_at, has_a)
        br, bi = _load(b_ptr, lane[:, None] * stride_b + time[None, :] * stride_bt, inside)
        ur, ui = _times(ur, ui, br, bi)
    ar = tl.where(has_a, ar, 1.0)
    ar, ai, ur, ui = tl.associative_scan((ar, ai, ur, ui), 1, _compose)
    return ar, ai, ur, ui, time, inside


@triton.jit
def _last(tile, BLOCK_T: tl.constexpr):
    """The last column."""
    return tl.sum(tl.where((tl.arange(0, BLOCK_T) == BLOCK_T - 1)[None, :], tile, 0.0), axis=1)


@triton.jit
def _segment_map_kernel(
    u_ptr, a_ptr, b_ptr, maps_ptr, lanes, steps, chunks,
    stride_u, stride_ut, stride_a, stride_at, stride_b, stride_bt,
    REVERSE: tl.constexpr, BLOCK_LANES: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The composed map of each segment: [segments, 4, lanes]."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    segment = tl.program_id(1)
    ar, ai = tl.full((BLOCK_LANES,), 1.0, tl.float32), tl.zeros((BLOCK_LANES,), tl.float32)
    br, bi = tl.zeros((BLOCK_LANES,), tl.float32), tl.zeros((BLOCK_LANES,), tl.float32)
    for chunk in range(segment * chunks, (segment + 1) * chunks):
        step = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
        cr, ci, dr, di, _, _ = _maps(
            u_ptr, a_ptr, b_ptr, lane, step, lanes, steps,
            stride_u, stride_ut, stride_a, stride_at, stride_b, stride_bt, REVERSE,
        )  # fmt: skip
        ar, ai, br, bi = _compose(
            ar, ai, br, bi, _last(cr, BLOCK_T), _last(ci, BLOCK_T), _last(dr, BLOCK_T), _last(di, BLOCK_T)
        )  # fmt: skip
    at = maps_ptr + segment * 4 * lanes + lane
    tl.store(at, ar, mask=lane < lanes)
    tl.store(at + lanes, ai, mask=lane < lanes)
    tl.store(at + 2 * lanes, br, mask=lane < lanes)
    tl.store(at + 3 * lanes, bi, mask=lane < lanes)


@triton.jit
def _entering(first_ptr, maps_ptr, lane, lanes, stride_first):
    """h at the start of this segment."""
    hr = tl.load(first_ptr + lane * stride_first, mask=lane < lanes, other=0.0)
    hi = tl.load(first_ptr + lane * stride_first + 1, mask=lane < lanes, other=0.0)
    if maps_ptr is not None:
        for before in range(tl.program_id(1)):
            at = maps_ptr + before * 4 * lanes + lane
            ar, ai = tl.load(at, mask=lane < lanes, other=0.0), tl.load(at + lanes, mask=lane < lanes, other=0.0)
            br = tl.load(at + 2 * lanes, mask=lane < lanes, other=0.0)
            bi = tl.load(at + 3 * lanes, mask=lane < lanes, other=0.0)
            hr, hi = _apply(ar, ai, br, bi, hr, hi)
    return hr, hi


@triton.jit
def _complex_scan_fwd_kernel(
    x_ptr, a_ptr, b_ptr, state_ptr, maps_ptr, y_ptr, last_ptr, lanes, steps, chunks,
    stride_x, stride_xt, stride_a, stride_at, stride_b, stride_bt, stride_state,
    BLOCK_LANES: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0).to(tl.int64) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    segment = tl.program_id(1)
    hr, hi = _entering(state_ptr, maps_ptr, lane, lanes, stride_state)
    for chunk in range(segment * chunks, (segment + 1) * chunks):
        step = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
        ar, ai, ur, ui, time, inside = _maps(
            x_ptr, a_ptr, b_ptr, lane, step, lanes, steps,
            stride_x, stride_xt, stride_a, stride_at, stride_b, stride_bt, False,
        )  # fmt: skip
        yr, yi = _apply(ar, ai, ur, ui, hr[:, None], hi[:, None])
        _store(y_ptr, (lane[:, None] * steps + time[None, :]) * 2, yr, yi, inside)
        hr, hi = _last(yr, BLOCK_T), _last(yi, BLOCK_T)
    if segment == tl.num_programs(1) - 1:
        tl.store(last_ptr + lane * 2, hr, mask=lane < lanes)
        tl.store(last_ptr + lane * 2 + 1, hi, mask=lane < lanes)


@triton.jit
def _complex_scan_bwd_kernel(
    dy_ptr, dlast_ptr, x_ptr, a_ptr, b_ptr, state_ptr, y_ptr, maps_ptr, dx_ptr, da_ptr, db_ptr, dstate_ptr,
    lanes, steps, chunks, stride_dy, stride_dyt, stride_dlast,
    stride_x, stride_xt, stride_a, stride_at, stride_b, stride_bt, stride_state,
    SUM_A: tl.constexpr, SUM_B: tl.constexpr, BLOCK_LANES: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """With SUM_A (SUM_B) one gradient for the whole time: each segment writes its part to `[segments, lanes, 2]`."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK_LANES + tl.arange(0, BLOCK_LANES)
    segment = tl.program_id(1)
    gr, gi = _entering(dlast_ptr, maps_ptr, lane, lanes, stride_dlast)
    sum_ar, sum_ai = tl.zeros((BLOCK_LANES,), tl.float32), tl.zeros((BLOCK_LANES,), tl.float32)
    sum_br, sum_bi = tl.zeros((BLOCK_LANES,), tl.float32), tl.zeros((BLOCK_LANES,), tl.float32)
    for chunk in range(segment * chunks, (segment + 1) * chunks):
        step = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
        mr, mi, ur, ui, time, inside = _maps(
            dy_ptr, a_ptr, b_ptr, lane, step, lanes, steps,
            stride_dy, stride_dyt, stride_a, stride_at, stride_b, stride_bt, True,
        )  # fmt: skip
        ur, ui = _apply(mr, mi, ur, ui, gr[:, None], gi[:, None])
        gr, gi = _last(ur, BLOCK_T), _last(ui, BLOCK_T)
        here = (lane[:, None] * steps + time[None, :]) * 2
        if dx_ptr is not None:
            br, bi = _load(b_ptr, lane[:, None] * stride_b + time[None, :] * stride_bt, inside)
            dr, di = _times_conj(ur, ui, br, bi)
            _store(dx_ptr, here, dr, di, inside)
        if db_ptr is not None:
            xr, xi = _load(x_ptr, lane[:, None] * stride_x + time[None, :] * stride_xt, inside)
            dr, di = _times_conj(ur, ui, xr, xi)
            if SUM_B:
                sum_br += tl.sum(dr, axis=1)
                sum_bi += tl.sum(di, axis=1)
            else:
                _store(db_ptr, here, dr, di, inside)
        if da_ptr is not None:
            first = (time == 0)[None, :]
            hr, hi = _load(y_ptr, here - 2, inside & (time > 0)[None, :])
            sr, si = _load(state_ptr, lane[:, None] * stride_state + 0 * time[None, :], inside & first)
            dr, di = _times_conj(ur, ui, hr + sr, hi + si)
            if SUM_A:
                sum_ar += tl.sum(dr, axis=1)
                sum_ai += tl.sum(di, axis=1)
            else:
                _store(da_ptr, here, dr, di, inside)
    part = (segment * lanes + lane) * 2
    if da_ptr is not None and SUM_A:
        tl.store(da_ptr + part, sum_ar, mask=lane < lanes)
        tl.store(da_ptr + part + 1, sum_ai, mask=lane < lanes)
    if db_ptr is not None and SUM_B:
        tl.store(db_ptr + part, sum_br, mask=lane < lanes)
        tl.store(db_ptr + part + 1, sum_bi, mask=lane < lanes)
    if dstate_ptr is not None and segment == tl.num_programs(1) - 1:
        ar = tl.load(a_ptr + lane * stride_a, mask=lane < lanes, other=0.0)
        ai = tl.load(a_ptr + lane * stride_a + 1, mask=lane < lanes, other=0.0)
        dr, di = _times_conj(gr, gi, ar, ai)
        tl.store(dstate_ptr + lane * 2, dr, mask=lane < lanes)
        tl.store(dstate_ptr + lane * 2 + 1, di, mask=lane < lanes)
