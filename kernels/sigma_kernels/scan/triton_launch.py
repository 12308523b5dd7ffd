"""How each kernel of the scan is launched: a table by architecture, shape class and width; nothing is tuned here.

What `sigma tune` measured on this machine (`tuned`) wins over the table.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from itertools import product
from typing import Any, Literal

from sigma_kernels import tuned
from sigma_kernels.architecture import ARCHITECTURES, WARPGROUP_PRODUCTS


@dataclass(frozen=True)
class Launch:
    """Warps of a program, and the most registers of a thread where fewer let more programs share a multiprocessor."""

    warps: int = 4
    registers: int | None = None

    def options(self) -> dict[str, Any]:
        """Loops are not pipelined: their loads are few and their registers dear."""
        return {"num_warps": self.warps, "num_stages": 1, "maxnreg": self.registers}


@dataclass(frozen=True)
class ChannelLaunch(Launch):
    """`Launch` of a kernel that takes its channels in tiles, with the pairs of one tile."""

    pairs: int = 64


@dataclass(frozen=True)
class Tiles:
    """Rows (steps x rank) of a chunk, and how each kernel is launched."""

    outer: ChannelLaunch
    output: ChannelLaunch
    value: ChannelLaunch
    matrix: ChannelLaunch
    norm_backward: ChannelLaunch
    over_heads: ChannelLaunch = ChannelLaunch(1)
    phase: Launch = Launch(1)  # one warp holds the heads of a program, so that their sums wait for no other
    phase_backward: Launch = Launch(1)
    state_pass: Launch = Launch()
    rows: int = 64  # the height of the tensor cores' tiles with four warps
    sum_rows: int = 8  # of one program of the sums over heads
    heads_phase: int = 8  # most heads of one program of the phases, at up to 32 pairs

    def steps(self, rank: int) -> int:
        """Steps of a chunk: every 64 for SISO, 16 for rank 4 and more (16 is the least that a product takes)."""
        return max(16, self.rows // padded_rank(rank))

    def settings(self) -> tuned.Settings:
        """As JSON: a launch is [warps, registers], or [warps, registers, pairs]."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(astuple(v)) if isinstance(v, Launch) else v for name, v in values.items()}

    def with_settings(self, settings: tuned.Settings) -> Tiles:
        """These tiles with `settings` in the form of `settings()`."""
        changed = {name: type(getattr(self, name))(*v) if isinstance(v, list) else v for name, v in settings.items()}
        return replace(self, **changed)


LEAST_MOST = {"rows": (16, 512), "sum_rows": (1, 64), "heads_phase": (1, 64)}
PAIRS = (32, 128)


def check_settings(settings: tuned.Settings) -> None:
    """Raises ValueError for what is not of the form of `Tiles.settings()`, or no kernel can be launched with."""
    present = WARPS.settings()
    for name, value in settings.items():
        good = tuned.power_of_two(value, *LEAST_MOST[name]) if name in LEAST_MOST else _is_launch(value)
        if name not in present or not good or _length(value) != _length(present[name]):
            raise ValueError(f"{name} = {str(value)[:40]} is no launch of the scan")


def _is_launch(value: Any) -> bool:
    if not isinstance(value, list) or _length(value) < 2 or not tuned.power_of_two(value[0], 1, 16):
        return False
    few = value[1] is None or (type(value[1]) is int and 24 <= value[1] <= 255)
    return few and all(tuned.power_of_two(pairs, *PAIRS) for pairs in value[2:])


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


tuned.check_rows("scan", check_settings)


def padded_rank(rank: int) -> int:
    """The next power of two: a chunk holds whole steps."""
    return 1 << (rank - 1).bit_length()


Rank = Literal["siso", "mimo"]

SISO = Tiles(
    outer=ChannelLaunch(4, 96, 32),
    output=ChannelLaunch(4, 168, 32),
    value=ChannelLaunch(4),
    matrix=ChannelLaunch(4, 168, 32),
    norm_backward=ChannelLaunch(4, None, 32),
    over_heads=ChannelLaunch(1, None, 32),
    sum_rows=16,
)
MIMO = replace(SISO, value=ChannelLaunch(4, None, 32), matrix=ChannelLaunch(4, None, 32), sum_rows=32)
"""With the matrix products of sm_90 and sm_100, whose operands lie in shared memory."""

_EIGHT = ChannelLaunch(8)
WARPS = Tiles(outer=_EIGHT, output=_EIGHT, value=_EIGHT, matrix=_EIGHT, norm_backward=_EIGHT)
"""With operands in registers (sm_80, 86, 89, 120): twice the warps, so that they fit."""


def _of_width(tiles: Tiles, bits: int) -> Tiles:
    """fp32 takes twice the shared memory, and more registers: the fewer pairs, and no bound."""
    if bits == 16:
        return tiles
    launches = {field.name: getattr(tiles, field.name) for field in fields(tiles)}
    channels = {name: launch for name, launch in launches.items() if isinstance(launch, ChannelLaunch)}
    return replace(tiles, **{name: ChannelLaunch(launch.warps, None, 32) for name, launch in channels.items()})


TABLE: dict[tuple[str, Rank, int], Tiles] = {
    (name, rank, bits): _of_width((SISO if rank == "siso" else MIMO) if name in WARPGROUP_PRODUCTS else WARPS, bits)
    for name, rank, bits in product(ARCHITECTURES.values(), ("siso", "mimo"), (16, 32))
}

MEASURED = {("sm_90", "siso", 16): "H200: B8 T4096 H32 P64 N128, and N64", ("sm_90", "mimo", 16): "H200: rank 4"}
"""On what the rows of TABLE were timed, all but norm_backward. The others are unmeasured."""


@dataclass(frozen=True)
class ShapeClass:
    """What decides how a scan is launched: sizes as the tiles have them, and the bits of a number."""

    architecture: str
    head_size: int
    state: int
    rank: int
    bits: int

    @property
    def row(self) -> tuple[str, Rank, int]:
        """Its row of TABLE."""
        return self.architecture, "siso" if self.rank == 1 else "mimo", self.bits

    def __str__(self) -> str:
        return f"{self.architecture} P{self.head_size} N{self.state} R{self.rank} {self.bits} bits"


def tiles_of(shape: ShapeClass) -> Tiles:
    """What was tuned on this machine, else the row of the table."""
    built_in = TABLE[shape.row]
    return tuned.launch("scan", _key(shape), built_in.with_settings) or built_in


@cache
def _key(shape: ShapeClass) -> str:
    return str(shape)
