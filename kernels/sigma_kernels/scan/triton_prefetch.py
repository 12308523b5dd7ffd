"""Asking the L2 cache for what a later program reads, while this one computes.

Programs of a chunk kernel start in the order of heads, then chunks. A request costs no registers and waits for nothing;
rows have one for every 32 bytes. The program for the same head some chunks later asks for nothing of its own then: its
loads come from the cache. The value kernel is faster where it asks for its own data (AHEAD 0), a line at a time: it
begins with the loads of q and k, and the others are a long way behind (docs/log.md).
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from sigma_kernels.scan.kernel_math import LIBDEVICE

PROGRAMS_AHEAD = 96
"""How many programs later: on an H200 32 and 256 are slower (docs/log.md)."""
SECTOR, LINE = tl.constexpr(32), tl.constexpr(128)  # bytes


def chunks_ahead(heads: int) -> int:
    """Chunks between a program and the one that it asks for."""
    return -(-PROGRAMS_AHEAD // heads)


@triton.jit
def _ask_for(pointers):
    if LIBDEVICE:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers.to(tl.uint64)], tl.int32, is_pure=False, pack=1
        )


@triton.jit
def later_rows(start, T, STEPS: tl.constexpr, AHEAD: tl.constexpr):
    """The steps of the chunk AHEAD chunks later, counted from `start`; the sequence's last one beyond its end."""
    return tl.minimum(tl.arange(0, STEPS) + AHEAD * STEPS, T - 1 - start)


@triton.jit
def ask_for_rows(rows_ptr, row, stride, COLUMNS: tl.constexpr, BYTES: tl.constexpr = SECTOR):
    """Rows of COLUMNS elements, by a request for every BYTES."""
    REQUEST: tl.constexpr = 8 * BYTES // rows_ptr.dtype.element_ty.primitive_bitwidth
    if COLUMNS > 0:  # no pair may turn
        column = tl.arange(0, triton.next_power_of_2((COLUMNS + REQUEST - 1) // REQUEST)) * REQUEST
        _ask_for(rows_ptr + (row * stride)[:, None] + tl.minimum(column, COLUMNS - 1)[None, :])


@triton.jit
def ask_for_matrix(matrix_ptr, head, row, COLUMNS: tl.constexpr):
    """`ask_for_rows` of q or k, which the first head does for all."""
    if head == 0:
        ask_for_rows(matrix_ptr, row, COLUMNS, COLUMNS)


@triton.jit
def ask_for_state(
    state_ptr, chunk, N2: tl.constexpr, P: tl.constexpr, AHEAD: tl.constexpr, BYTES: tl.constexpr = SECTOR
):  # fmt: skip
    """The state [N2, P] AHEAD chunks after this chunk's at `state_ptr`, or the last one."""
    SIZE: tl.constexpr = N2 * P
    REQUEST: tl.constexpr = 8 * BYTES // state_ptr.dtype.element_ty.primitive_bitwidth
    element = tl.arange(0, triton.next_power_of_2((SIZE + REQUEST - 1) // REQUEST)) * REQUEST
    state_ptr += tl.minimum(AHEAD, tl.num_programs(1) - 1 - chunk) * SIZE
    _ask_for(state_ptr + tl.minimum(element, SIZE - 1))
