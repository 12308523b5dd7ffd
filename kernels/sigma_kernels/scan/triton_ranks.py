"""Between steps and their ranks: what all ranks of a step share, what all steps share, and sums over either.

A row is one rank of one step: row m of a block is rank m % RANK of step m // RANK, RANK a power of two.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def vectors_of_head(vector_ptr, head, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """The vectors [RANK, BLOCK_P] of one head of [H, R, P]; 0 beyond the true rank."""
    r = tl.arange(0, triton.next_power_of_2(R))
    p = tl.arange(0, BLOCK_P)
    at = vector_ptr + ((head * R + r) * P)[:, None] + p[None, :]
    return tl.load(at, mask=(r < R)[:, None] & (p < P)[None, :], other=0.0)


@triton.jit
def of_rows(tile, STEPS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr):
    """What broadcasts to [STEPS, RANK, WIDTH] -> [STEPS * RANK, WIDTH]."""
    return tl.reshape(tl.broadcast_to(tile, (STEPS, RANK, WIDTH)), (STEPS * RANK, WIDTH))


@triton.jit
def rank_vectors(vector_ptr, rank, head, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """The vector of each row's rank [H, R, P], [M, BLOCK_P]: read once for each rank, not for each row."""
    RANK: tl.constexpr = triton.next_power_of_2(R)
    STEPS: tl.constexpr = rank.shape[0] // RANK
    return of_rows(vectors_of_head(vector_ptr, head, P, R, BLOCK_P)[None, :, :], STEPS, RANK, BLOCK_P)


@triton.jit
def times_rank_vector(rows, vector_ptr, rank, head, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr):
    """Rows times `rank_vectors` where there are any."""
    if vector_ptr is not None:
        rows *= rank_vectors(vector_ptr, rank, head, P, R, BLOCK_P)
    return rows


@triton.jit
def value_rows(
    x_ptr, vector_ptr, rank, head, left, stride_t, P: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """Rows [M, BLOCK_P] in fp32 of one head of x [., P], of which `left` steps exist; all ranks of a step are equal.

    Times the rank's vector [H, R, P] where there is one. A product with a 0/1 matrix spreads 16-bit numbers over the
    ranks, exactly: they are read once a step, and need no way back from the layout of wide loads to that of products.
    """
    RANK: tl.constexpr = triton.next_power_of_2(R)
    M: tl.constexpr = rank.shape[0]
    STEPS: tl.constexpr = M // RANK
    t = tl.arange(0, STEPS)
    column = tl.arange(0, BLOCK_P)
    mask = (t < left)[:, None]
    if BLOCK_P != P:
        mask = mask & (column < P)[None, :]
    x = tl.load(x_ptr + (t * stride_t)[:, None] + column[None, :], mask=mask, other=0.0)
    if RANK == 1:
        rows = x.to(tl.float32)
    elif x.dtype == tl.float32:
        rows = of_rows(x[:, None, :], STEPS, RANK, BLOCK_P)
    else:
        own = tl.where(tl.arange(0, M)[:, None] // RANK == t[None, :], 1.0, 0.0)
        rows = tl.dot(own.to(x.dtype), x)
    return times_rank_vector(rows, vector_ptr, rank, head, P, R, BLOCK_P)


@triton.jit
def over_ranks(rows, STEPS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr):
    """[STEPS * RANK, WIDTH] -> the sum over the ranks [STEPS, WIDTH]."""
    if RANK == 1:
        out = rows
    else:
        out = tl.sum(tl.reshape(rows, (STEPS, RANK, WIDTH)), 1)
    return out


@triton.jit
def rounded_over_ranks(
    rows, STEPS: tl.constexpr, RANK: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """`over_ranks` of rows that are rounded to `dtype` before where it has 16 bits: a product needs no shuffles."""
    if RANK == 1 or dtype == tl.float32:
        out = over_ranks(rows, STEPS, RANK, WIDTH)
    else:
        ones = tl.where(tl.arange(0, STEPS)[:, None] == tl.arange(0, STEPS * RANK)[None, :] // RANK, 1.0, 0.0)
        out = tl.dot(ones.to(dtype), rows.to(dtype))
    return out


@triton.jit
def rank_sums(rows, rank, RANK: tl.constexpr, EXACT: tl.constexpr):
    """[STEPS * RANK, WIDTH] -> the sum over the steps [max(RANK, 16), WIDTH], zero from RANK on.

    A product, because sums over the rows of a tile go through shared memory with every thread of a warp in one bank.
    Without EXACT each row is rounded to bf16.
    """
    LEAST: tl.constexpr = 16  # rows that a product has
    r = tl.arange(0, max(RANK, LEAST))
    ones = tl.where(r[:, None] == rank[None, :], 1.0, 0.0)
    if EXACT:
        out = tl.dot(ones, rows, input_precision="tf32x3")
    else:
        out = tl.dot(ones.to(tl.bfloat16), rows.to(tl.bfloat16))
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
def by_step(row_sums, STEPS: tl.constexpr, RANK: tl.constexpr):
    """[STEPS * RANK] -> the sum over the ranks [STEPS]."""
    if RANK == 1:
        out = row_sums
    else:
        out = tl.sum(tl.reshape(row_sums, (STEPS, RANK)), 1)
    return out
