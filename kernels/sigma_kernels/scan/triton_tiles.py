"""The tiles that the scan's kernels share: rows of matrices, turned by their phase, and the weights between rows.

Pointers come advanced to the first step of a chunk, so that rows count from there and 32 bits are enough for them.
A row is one rank of one step: row m of a block is rank m % RANK of step m // RANK, so that MIMO and SISO are one code
path. RANK is the true rank rounded up to a power of two; rows of ranks beyond the true one are 0.

Outside the kernels a pair of channels is (i, i + N/2). Turned matrices, and everything that is multiplied with them,
have the channels of a pair side by side, 2 i and 2 i + 1, so that one product takes both and a thread owns both. An odd
N has a channel of zeros as the partner of its last one.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import LIBDEVICE, cos_sin, exp2

RADIANS_PER_UPPER_HALF = tl.constexpr(9.587379924285257e-05)  # 2 pi / 2**16


@triton.jit
def cos_sin_of_stored(stored):
    """(cos, sin) of a stored phase: accurate for int32; for int16 by the hardware's approximation, within 1e-6."""
    if stored.dtype == tl.int16:
        angle = stored.to(tl.float32) * RADIANS_PER_UPPER_HALF
        if LIBDEVICE:
            cos = tl.inline_asm_elementwise(
                "cos.approx.f32 $0, $1;", "=f,f", [angle], dtype=tl.float32, is_pure=True, pack=1
            )
            sin = tl.inline_asm_elementwise(
                "sin.approx.f32 $0, $1;", "=f,f", [angle], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            cos = tl.cos(angle)
            sin = tl.sin(angle)
    else:
        cos, sin = cos_sin(stored, tl.float32)
    return cos, sin


@triton.jit
def chunk_rows(start, T, R: tl.constexpr, STEPS: tl.constexpr, RANK: tl.constexpr):
    """(step in the chunk, rank, whether it exists) of each of the STEPS * RANK rows from the step `start` on."""
    m = tl.arange(0, STEPS * RANK)
    row = m // RANK
    rank = m % RANK
    return row, rank, (row < T - start) & (rank < R)


@triton.jit
def group_of(head, H, G: tl.constexpr):
    """The matrices that a head uses. One group needs no division, on which everything would wait."""
    if G == 1:
        group = 0
    else:
        group = head // (H // G)
    return group


@triton.jit
def row_angles(phase_ptr, row, inside, pair, S: tl.constexpr, HALF: tl.constexpr):
    """(cos, sin) of every row and of the pairs from `pair` on, [M, HALF]; phases are [., S], from S on none turns."""
    column = pair + tl.arange(0, HALF)
    at = phase_ptr + row[:, None] * S + column[None, :]
    return cos_sin_of_stored(tl.load(at, mask=inside[:, None] & (column < S)[None, :], other=0))


@triton.jit
def matrix_rows(
    matrix_ptr, bias_ptr, row, rank, group, head, inside, pair,
    N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Rows of one head, fp32 [M, HALF] twice: the normalised matrix [., R, G, N] plus bias [H, R, N], not turned.

    The tiles are the channels pair .. pair + HALF and their partners, N / 2 further on.
    """
    column = pair + tl.arange(0, HALF)
    split: tl.constexpr = (N + 1) // 2
    low = inside[:, None]
    high = inside[:, None]
    if (N // 2) % HALF != 0 or N % 2 != 0:
        low = low & (column < split)[None, :]
        high = high & (column < N // 2)[None, :]
    at = matrix_ptr + ((row * R + rank) * G + group)[:, None] * N + column[None, :]
    u0 = tl.load(at, mask=low, other=0.0).to(tl.float32)
    u1 = tl.load(at + split, mask=high, other=0.0).to(tl.float32)
    if R == 1:  # one bias for all rows; those beyond the end are multiplied by 0 wherever they are used
        own = bias_ptr + head * N + column
        u0 += tl.load(own, mask=column < split, other=0.0)[None, :]
        u1 += tl.load(own + split, mask=column < N // 2, other=0.0)[None, :]
    else:
        own = bias_ptr + ((head * R + rank) * N)[:, None] + column[None, :]
        u0 += tl.load(own, mask=low, other=0.0).to(tl.float32)
        u1 += tl.load(own + split, mask=high, other=0.0).to(tl.float32)
    return u0, u1


@triton.jit
def side_by_side(low, high, M: tl.constexpr, HALF: tl.constexpr):
    """[M, HALF] twice -> [M, 2 HALF], the channels of a pair side by side."""
    return tl.reshape(tl.join(low, high), (M, 2 * HALF))


@triton.jit
def pair_parts(tile, M: tl.constexpr, HALF: tl.constexpr):
    """The way back: (low, high)."""
    return tl.split(tl.reshape(tile, (M, HALF, 2)))


@triton.jit
def _turn(u0, u1, cos, sin):
    return u0 * cos - u1 * sin, u0 * sin + u1 * cos


@triton.jit
def turned_rows(
    matrix_ptr, bias_ptr, phase_ptr, row, rank, group, head, inside, pair: tl.constexpr, dtype: tl.constexpr,
    S: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """`matrix_rows`, turned by the phase, [M, 2 HALF]."""
    u0, u1 = matrix_rows(matrix_ptr, bias_ptr, row, rank, group, head, inside, pair, N, G, R, HALF)
    if pair < S:
        cos, sin = row_angles(phase_ptr, row, inside, pair, S, HALF)
        u0, u1 = _turn(u0, u1, cos, sin)
    return once(side_by_side(u0.to(dtype), u1.to(dtype), M, HALF))


@triton.jit
def turned_both(
    q_ptr, k_ptr, q_bias_ptr, k_bias_ptr, phase_ptr, row, rank, group, head, inside, pair: tl.constexpr,
    dtype: tl.constexpr,
    S: tl.constexpr, N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """`turned_rows` of q and of k, with the same sines. All loads come first, so that they wait for memory together."""
    k0, k1 = matrix_rows(k_ptr, k_bias_ptr, row, rank, group, head, inside, pair, N, G, R, HALF)
    q0, q1 = matrix_rows(q_ptr, q_bias_ptr, row, rank, group, head, inside, pair, N, G, R, HALF)
    if pair < S:
        cos, sin = row_angles(phase_ptr, row, inside, pair, S, HALF)
        k0, k1 = _turn(k0, k1, cos, sin)
        q0, q1 = _turn(q0, q1, cos, sin)
    k = once(side_by_side(k0.to(dtype), k1.to(dtype), M, HALF))
    return once(side_by_side(q0.to(dtype), q1.to(dtype), M, HALF)), k


@triton.jit
def once(x):
    """x itself. Whatever a product asks for, what computes x stands in one place and is done once.

    The compiler would repeat the arithmetic, with its sines, in each layout that x is needed in; an assembly statement
    that it must take for impure it cannot repeat.
    """
    if LIBDEVICE:
        if x.dtype.primitive_bitwidth == 16:
            x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2)
        else:
            x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=1)
    return x


@triton.jit
def row_weights(
    g, scale, gamma, g_ptr, scale_ptr, start, sequence_ptr, T, STEPS: tl.constexpr, RANK: tl.constexpr
):  # fmt: skip
    """(e^{g_i - g_j} where step j is strictly before step i, in the same sequence, else 0; what row j adds to row i:
    scale_j times that, and gamma_i within a step), both [M, M].

    Takes rows [M], and the pointers at the chunk's first step: the ranks of a step j share what is made for one of
    them, [M, STEPS].
    """
    M: tl.constexpr = STEPS * RANK
    i = start + tl.arange(0, M) // RANK
    if RANK == 1:
        j = i
        g_j = g
        scale_j = scale
    else:
        j = start + tl.arange(0, STEPS)
        g_j = tl.load(g_ptr + j - start, mask=j < T, other=0.0)
        scale_j = tl.load(scale_ptr + j - start, mask=j < T, other=0.0)
    before = i[:, None] > j[None, :]
    if sequence_ptr is not None:
        sequence_i = tl.load(sequence_ptr + i, mask=i < T, other=-1)
        sequence_j = tl.load(sequence_ptr + j, mask=j < T, other=-1)
        before = before & (sequence_i[:, None] == sequence_j[None, :])
    decay = tl.where(before, exp2(tl.minimum(g[:, None] - g_j[None, :], 0.0)), 0.0)
    weight = decay * scale_j[None, :] + tl.where(i[:, None] == j[None, :], gamma[:, None], 0.0)
    return _for_each_rank(decay, M, STEPS, RANK), _for_each_rank(weight, M, STEPS, RANK)


@triton.jit
def _for_each_rank(columns, M: tl.constexpr, STEPS: tl.constexpr, RANK: tl.constexpr):
    """[M, STEPS] -> [M, STEPS * RANK]."""
    if RANK == 1:
        out = columns
    else:
        out = tl.reshape(tl.broadcast_to(columns[:, :, None], (M, STEPS, RANK)), (M, STEPS * RANK))
    return out


@triton.jit
def entering_weight(g, step, sequence_ptr, start, T):
    """e^{g_i}: how much of the state that enters the chunk (which begins at step `start`) is left at each row."""
    weight = exp2(g)
    if sequence_ptr is not None:
        before = tl.load(sequence_ptr + start - 1, mask=start > 0, other=-1)
        weight = tl.where(tl.load(sequence_ptr + step, mask=step < T, other=-2) == before, weight, 0.0)
    return weight


@triton.jit
def leaving_weight(g, g_end, step, sequence_ptr, end, T):
    """e^{g_end - g_j}: how much of each row is left in the state after the chunk, whose last step is `end`."""
    weight = exp2(tl.minimum(g_end - g, 0.0))
    if sequence_ptr is not None:
        last = tl.load(sequence_ptr + end)
        weight = tl.where(tl.load(sequence_ptr + step, mask=step < T, other=-2) == last, weight, 0.0)
    return weight


@triton.jit
def state_tile(state_ptr, pair, N2: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr, BLOCK_P: tl.constexpr):
    """The pairs pair .. pair + HALF of one state [N2, P], side by side: [2 HALF, BLOCK_P]."""
    n = 2 * pair + tl.arange(0, 2 * HALF)
    p = tl.arange(0, BLOCK_P)
    at = state_ptr + n[:, None] * P + p[None, :]
    if N2 % (2 * HALF) == 0 and BLOCK_P == P:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=(n < N2)[:, None] & (p < P)[None, :], other=0.0)
    return tile
