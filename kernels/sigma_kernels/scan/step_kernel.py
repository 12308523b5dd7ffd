"""The Mamba-3 decode step in one Triton launch, on the state in place.

One program owns one head of one row: the norm before the gate needs all P channels, and phase, last key and last x are
read by everything that works on the head, so no second program may overwrite them. The state is read first and written
last; between them stands a short chain (norm, bias, rotation, coefficients) that its loads hide. Heads are the fastest
axis of the grid, so that neighbours share the row's matrices in cache. What limits a small batch: with fewer than some
hundred B * H programs the GPU is not full, and the step takes the latency of one program (launch, two loads, a store).

Channels i and i + N/2 turn together. Each thread holds one channel and reads its partner's inputs too, which is cheaper
than an exchange. The norm before the gate of a head in several blocks needs all its y before the first is stored: a
pass in front works them out from the state, which a second pass over it then updates.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels.scan.kernel_math import cos_sin, heavy_tail, softplus, tanh, turns_to_int32
from sigma_kernels.scan.prepare import NORM_EPS, ScanParameters, compute_dtype
from sigma_kernels.scan.state import Mamba3State

# Most rows of the state that a program holds at once: when they are the whole head in bf16, and otherwise, when the
# head is walked over in blocks. With these numbers no shape up to P = 128, N = 256, R = 4 spills registers.
ROWS_WHOLE = 64
ROWS = 32
# One thread for each of the N channels: norm, rotation and phase are then worked out once for each.
CHANNELS_PER_THREAD = 1
MOST_WARPS = 8
# Registers per thread for a bf16 state without MIMO: four programs of 128 threads per multiprocessor instead of three.
MOST_REGISTERS = 128

EPS = tl.constexpr(NORM_EPS)


@triton.jit
def _row(ptr, at, alive, N: tl.constexpr, ACC: tl.constexpr):
    """The channels `at` of a row of N, in ACC; zeros behind them and where `alive` is not set."""
    return tl.load(ptr + at, mask=(at < N) & alive, other=0.0).to(ACC)


@triton.jit
def _rotated(ptr, norm_ptr, bias_ptr, col, partner, cos, sin, alive, N: tl.constexpr, ACC: tl.constexpr):
    """A row of `in` or `out`: normalised, biased, turned. Each channel also reads its partner's, and moves nothing."""
    u, v = _row(ptr, col, alive, N, ACC), _row(ptr, partner, alive, N, ACC)
    rstd = tl.rsqrt(tl.sum(u * u, axis=0) / N + EPS)
    u = u * rstd * _row(norm_ptr, col, True, N, ACC) + _row(bias_ptr, col, True, N, ACC)
    v = v * rstd * _row(norm_ptr, partner, True, N, ACC) + _row(bias_ptr, partner, True, N, ACC)
    return u * cos + v * sin


@triton.jit
def _expansion(ptr, at, mask, ACC: tl.constexpr):
    """One rank's vector of a MIMO expansion; 1 for SISO."""
    return 1.0 if ptr is None else tl.load(ptr + at, mask=mask, other=0.0).to(ACC)


@triton.jit
def _load_rows(state_ptr, last_x_ptr, x_ptr, row, col, alive, P: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr):
    """The rows `row` of a head: the state as it is stored, the last x and the new one."""
    h = tl.load(state_ptr + row[:, None] * N + col[None, :], mask=(row < P)[:, None] & (col < N)[None, :], other=0.0)
    last_x = tl.load(last_x_ptr + row, mask=row < P, other=0.0).to(ACC)
    x = tl.load(x_ptr + row, mask=(row < P) & alive, other=0.0).to(ACC)
    return h, last_x, x


@triton.jit
def _advance(h, last_x, x, row, alpha, gamma, left, vectors, mimo_x_ptr, P: tl.constexpr, R: tl.constexpr):
    """alpha h + left k_prev x_prev^T + gamma k x^T on the rows `row`."""
    h = h.to(x.dtype) * alpha
    for r in tl.static_range(R):
        last_key, key, _ = vectors[r]
        psi = _expansion(mimo_x_ptr, r * P + row, row < P, x.dtype)
        # fma, not a product and a sum: a product alone would be worked out in a layout of its own and moved over
        h = tl.fma((last_x * psi * left)[:, None], last_key[None, :], h)
        h = tl.fma((x * psi * gamma)[:, None], key[None, :], h)
    return h


@triton.jit
def _read_out(h, x, row, skip, vectors, mimo_x_ptr, P: tl.constexpr, r: tl.constexpr):
    """y = h q + D X of rank r."""
    _, _, query = vectors[r]
    psi = _expansion(mimo_x_ptr, r * P + row, row < P, x.dtype)
    return tl.sum(h * query[None, :], axis=1) + skip * x * psi


@triton.jit
def _mamba3_step_kernel(
    phase_ptr, state_ptr, key_ptr, last_x_ptr,
    x_ptr, z_ptr, in_ptr, out_ptr, dd_dt_ptr, dd_a_ptr, trap_ptr, angle_ptr, valid_ptr,
    dt_bias_ptr, in_norm_ptr, out_norm_ptr, in_bias_ptr, out_bias_ptr, skip_ptr,
    mimo_x_ptr, mimo_z_ptr, mimo_out_ptr, y_norm_ptr, y_ptr,
    stride_phase_b, stride_phase_h, stride_state_b, stride_state_h, stride_key_b, stride_key_r, stride_key_h,
    stride_last_x_b, stride_last_x_h,
    stride_x, stride_z, stride_in, stride_out, stride_dd_dt, stride_dd_a, stride_trap, stride_angle, stride_valid,
    H: tl.constexpr, G: tl.constexpr, P: tl.constexpr, N: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    b, h = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    g = h // (H // G)
    col = tl.arange(0, BLOCK_N)
    state_ptr += b * stride_state_b + h * stride_state_h
    last_x_ptr += b * stride_last_x_b + h * stride_last_x_h
    x_ptr += b * stride_x + h * P
    z_ptr += b * stride_z + h * P
    y_ptr += tl.program_id(0).to(tl.int64) * P
    # A padded row reads zeros for its inputs and gets dt = 0: it turns nothing, its y is 0, and nothing is stored.
    alive = True if valid_ptr is None else tl.load(valid_ptr + b * stride_valid) != 0
    row = tl.arange(0, BLOCK_P)
    state, last_x, x = _load_rows(state_ptr, last_x_ptr, x_ptr, row, col, alive, P, N, ACC)

    dd_dt = tl.load(dd_dt_ptr + b * stride_dd_dt + h, mask=alive, other=0.0).to(ACC)
    dd_a = tl.load(dd_a_ptr + b * stride_dd_a + h, mask=alive, other=0.0).to(ACC)
    trap = tl.load(trap_ptr + b * stride_trap + h, mask=alive, other=0.0).to(ACC)
    dt = tl.where(alive, softplus(dd_dt + tl.load(dt_bias_ptr + h).to(ACC)), 0.0)
    alpha = tl.exp(-dt * heavy_tail(dd_a))
    gamma = tl.sigmoid(trap) * dt
    left = tl.sigmoid(-trap) * dt * alpha

    # Channels i and i + N/2 are a pair, and both work out its angle: one element per thread.
    HALF: tl.constexpr = N // 2
    second = col >= HALF
    partner = tl.where(second, col - HALF, col + HALF)
    pair = tl.where(second, col - HALF, col)
    turning = (pair < S) & (col < N)
    phase_ptr += b * stride_phase_b + h * stride_phase_h
    angle = tl.load(angle_ptr + b * stride_angle + pair, mask=turning & alive, other=0.0).to(ACC)
    phase = tl.load(phase_ptr + pair, mask=turning, other=0)
    phase += turns_to_int32(dt * (tanh(angle) * 0.5))
    cos, sin = cos_sin(phase, ACC)
    sin = tl.where(second, sin, -sin)

    in_ptr += b * stride_in + g * N
    out_ptr += b * stride_out + g * N
    key_ptr += b * stride_key_b + h * stride_key_h
    if mimo_x_ptr is not None:
        mimo_x_ptr += h * R * P
        mimo_z_ptr += h * R * P
        mimo_out_ptr += h * R * P
    skip = tl.load(skip_ptr + h).to(ACC)
    vectors = ()  # of each rank: last key, key and query
    for r in tl.static_range(R):
        in_bias, out_bias = in_bias_ptr + (h * R + r) * N, out_bias_ptr + (h * R + r) * N
        last_key = _row(key_ptr + r * stride_key_r, col, True, N, ACC)
        key = _rotated(in_ptr + r * G * N, in_norm_ptr, in_bias, col, partner, cos, sin, alive, N, ACC)
        query = _rotated(out_ptr + r * G * N, out_norm_ptr, out_bias, col, partner, cos, sin, alive, N, ACC)
        vectors += ((last_key, key, query),)
    tl.debug_barrier()  # every warp has read what the others now overwrite
    for r in tl.static_range(R):
        _, key, _ = vectors[r]
        tl.store(key_ptr + r * stride_key_r + col, key.to(key_ptr.dtype.element_ty), mask=(col < N) & alive)
    tl.store(phase_ptr + pair, phase, mask=turning & (col < HALF))

    rank = tl.arange(0, BLOCK_R)
    squares = tl.zeros((BLOCK_R,), ACC)
    if y_norm_ptr is not None and BLOCKS > 1:  # the norm's sum over a head in several blocks, before anything is stored
        for block in range(BLOCKS):
            at = block * BLOCK_P + row
            after, last, new = _load_rows(state_ptr, last_x_ptr, x_ptr, at, col, alive, P, N, ACC)
            after = _advance(after, last, new, at, alpha, gamma, left, vectors, mimo_x_ptr, P, R)
            for r in tl.static_range(R):
                y = _read_out(after, new, at, skip, vectors, mimo_x_ptr, P, r)
                squares += tl.where(rank == r, tl.sum(y * y, axis=0), 0.0)

    for block in range(BLOCKS):
        at = block * BLOCK_P + row
        there = (at < P) & alive
        z = tl.load(z_ptr + at, mask=there, other=0.0).to(ACC)
        after = _advance(state, last_x, x, at, alpha, gamma, left, vectors, mimo_x_ptr, P, R)
        new = x
        if BLOCKS > 1:  # the rows of the next block arrive while this one is worked on
            state, last_x, x = _load_rows(state_ptr, last_x_ptr, x_ptr, at + BLOCK_P, col, alive, P, N, ACC)
            tl.debug_barrier()  # before the next block is overwritten in its turn
        inside = there[:, None] & (col < N)[None, :]
        tl.store(state_ptr + at[:, None] * N + col[None, :], after.to(state_ptr.dtype.element_ty), mask=inside)
        tl.store(last_x_ptr + at, new.to(last_x_ptr.dtype.element_ty), mask=there)

        total = tl.zeros((BLOCK_P,), ACC)
        for r in tl.static_range(R):
            y = _read_out(after, new, at, skip, vectors, mimo_x_ptr, P, r)
            if y_norm_ptr is not None:
                square = tl.sum(y * y, axis=0) if BLOCKS == 1 else tl.sum(tl.where(rank == r, squares, 0.0), axis=0)
                y *= tl.rsqrt(square / P + EPS) * tl.load(y_norm_ptr + h * P + at, mask=at < P, other=0.0).to(ACC)
            gated = z * _expansion(mimo_z_ptr, r * P + at, at < P, ACC)
            total += y * gated * tl.sigmoid(gated) * _expansion(mimo_out_ptr, r * P + at, at < P, ACC)
        tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=at < P)


def launch_step(
    state: Mamba3State, inputs: tuple[Tensor, ...], valid_B: Tensor | None, parameters: ScanParameters
) -> Tensor:
    """Run the step (`op.mamba3_step`, whose shapes hold) and return y_BHP; `state` is overwritten.

    The inputs may be columns of a wider projection, the state may have any strides between its heads: both are used in
    place. Only what is not dense within a head is copied first, and a state then copied back.
    """
    x_BHP, in_BRGN, angle_BS = inputs[0], inputs[2], inputs[7]
    batch, heads, head_size = x_BHP.shape
    rank, groups, size = in_BRGN.shape[1:]
    stored = (state.phase_BHS, state.state_BHPN, state.key_BRHN, state.x_BHP)
    used = [_dense_from(t, axis) for t, axis in zip(stored, (2, 2, 3, 2), strict=True)]
    phase, h, key, last_x = used
    rows = [_rows(t) for t in inputs]
    mimo = parameters.get("mimo")
    learned = [parameters[name] for name in ("dt_bias_H", "in_norm_N", "out_norm_N")]
    learned += [parameters[name] for name in ("in_bias_HRN", "out_bias_HRN", "skip_H")]
    learned += [None] * 3 if mimo is None else [mimo.x_HRP, mimo.z_HRP, mimo.out_HRP]
    learned = [None if t is None else t.contiguous() for t in (*learned, parameters.get("y_norm_HP"))]
    y_BHP = torch.empty(x_BHP.shape, dtype=x_BHP.dtype, device=x_BHP.device)
    arguments: list[Any] = [*used, *rows, valid_B, *learned, y_BHP]
    arguments += [*phase.stride()[:2], *h.stride()[:2], *key.stride()[:3], *last_x.stride()[:2]]
    arguments += [*(t.stride(0) for t in rows), 0 if valid_B is None else valid_B.stride(0)]
    constants = tile_of(head_size, size, rank, h.dtype) | {"H": heads, "G": groups, "S": angle_BS.shape[1]}
    constants["ACC"] = tl.float64 if compute_dtype(x_BHP) == torch.float64 else tl.float32
    with torch.cuda.device_of(x_BHP):
        _mamba3_step_kernel[(batch * heads,)](*arguments, **constants)
    for ours, theirs in zip(used, stored, strict=True):
        if ours is not theirs:
            theirs.copy_(ours)
    return y_BHP


def tile_of(head_size: int, size: int, rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """The compile-time arguments for a head of `[P, N]` stored in `dtype`, and the shape of its program."""
    block_n, small = _power_of_two(size), dtype == torch.bfloat16
    rows = ROWS_WHOLE if small and head_size <= ROWS_WHOLE else ROWS
    return {
        "P": head_size,
        "N": size,
        "R": rank,
        "BLOCK_P": min(_power_of_two(head_size), rows),
        "BLOCK_N": block_n,
        "BLOCK_R": _power_of_two(rank),
        "num_warps": min(MOST_WARPS, max(1, block_n // (32 * CHANNELS_PER_THREAD))),
        "num_stages": 1,
        "maxnreg": MOST_REGISTERS if small and rank == 1 else None,
    }


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _rows(t: Tensor) -> Tensor:
    """`[B, ...]` as `[B, n]` with dense rows; copies only what no single row stride describes."""
    rows = t.flatten(1)
    return rows if rows.stride(1) == 1 or rows.shape[1] <= 1 else rows.contiguous()


def _dense_from(t: Tensor, axis: int) -> Tensor:
    """`t` itself where the axes from `axis` on are dense, else a copy."""
    tail = t[(0,) * axis] if t.numel() else t
    return t if tail.is_contiguous() else t.contiguous()
