"""How each kernel of the scan is launched: tiles by shape and architecture, from a table. Nothing is tuned here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Launch:
    """Warps of a program, and the most registers of a thread where fewer let more programs share a multiprocessor."""

    warps: int = 4
    registers: int | None = None

    def options(self) -> dict[str, Any]:
        """Loops are not pipelined: their loads are few and their registers dear."""
        return {"num_warps": self.warps, "num_stages": 1, "maxnreg": self.registers}


@dataclass(frozen=True)
class Tiles:
    """Steps of a chunk, heads of one program of the phases, and how each kernel is launched."""

    steps: int
    heads_phase: int
    outer: Launch
    output: Launch
    value: Launch
    matrix: Launch
    over_heads: Launch = Launch(1)
    phase: Launch = Launch()
    phase_backward: Launch = Launch()
    state_pass: Launch = Launch()
    pairs: int = 64  # of channels in one tile
    pairs_32: int = 32  # the same for fp32, which takes twice the shared memory
    sum_rows: int = 8  # of one program of the sums over heads


ROWS = 64  # rows of a chunk: the height of the tensor cores' tiles with four warps


def padded_rank(rank: int) -> int:
    """The next power of two: a chunk holds whole steps."""
    return 1 << (rank - 1).bit_length()


WARPGROUPS: dict[str, Any] = {
    "outer": Launch(4, 128),
    "output": Launch(4, 168),
    "value": Launch(4, None),
    "matrix": Launch(4),
}
"""With the matrix products of sm_90 and sm_100, whose operands lie in shared memory. Measured on sm_90 at rank 1."""

WARPS: dict[str, Any] = dict.fromkeys(WARPGROUPS, Launch(8))
"""With operands in registers (sm_80, 86, 89, 120): twice the warps, so that they fit. Unmeasured."""


def tiles_of(rank: int, heads: int, capability: int) -> Tiles:
    """The tiles for a shape and `sm_<capability>`. States are kept every 64 steps for SISO, 16 for rank 4 and more."""
    return Tiles(
        steps=max(16, ROWS // padded_rank(rank)),
        heads_phase=_divisor(heads, 8),
        **(WARPGROUPS if capability in (90, 100) else WARPS),
    )


def _divisor(number: int, most: int) -> int:
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)
