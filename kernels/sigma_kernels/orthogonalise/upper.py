"""Which tile of a batch of symmetric matrices a program owns: those on and above the diagonal alone are launched."""

# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def upper_tile(program, rows, BLOCK: tl.constexpr, RATIO: tl.constexpr):
    """(matrix, first row, first column) of a tile of 1 by RATIO squares of BLOCK rows; row and column count squares.

    The triangle is folded into a rectangle: its n-th line from above and its n-th from below make one of it. The tiles
    of one matrix are neighbours: they share its rows in the cache.
    """
    wide = tl.cdiv(rows, RATIO * BLOCK)
    programs = RATIO * (wide * (wide + 1) // 2)
    tile = program % programs // RATIO
    line, place = tile // (wide + 1), tile % (wide + 1)
    above = place < wide - line
    row = tl.where(above, line, wide - 1 - line)
    column = tl.where(above, line + place, place - 1)
    return program // programs, row * RATIO + program % RATIO, column * RATIO


def upper_tiles(rows: int, block: int, ratio: int) -> int:
    """How many there are in one matrix."""
    wide = -(-rows // (ratio * block))
    return ratio * (wide * (wide + 1) // 2)
