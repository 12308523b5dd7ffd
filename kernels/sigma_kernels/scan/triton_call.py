"""One call of the scan on the GPU: its sizes, its operands, and what follows from them for the launches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sigma_kernels.architecture import architecture
from sigma_kernels.pipelining import stages
from sigma_kernels.scan.triton_launch import ChannelLaunch, ShapeClass, Tiles, padded_rank, tiles_of
from sigma_kernels.scan.triton_prefetch import chunks_ahead

COEFFICIENT_TILE = {"STEPS": 64, "HEADS": 16}
PASS_PAIRS = 16  # pairs of a program of the state passes, with all of P
# The passes over the chunks wait for memory; the figures were timed on an H200 (docs/scan.md).
PASS_STAGES = 6  # chunks whose states are on their way at a time
PASS_ENOUGH = 96  # with so many programs there is one segment; with fewer, segments are walked side by side
PASS_PROGRAMS = 512  # the most programs that segments make
SEGMENT_CHUNKS = 32  # the fewest chunks of a segment: each costs a step of the pass over segments
PHASE_STEPS = 8  # steps that a thread of the phases loads at a time
PHASE_BACKWARD_STEPS = 4  # their gradients take more registers
OVER_HEADS_STAGES = 4  # heads whose rows are on their way at a time
LEAST_TILE = 64  # columns of a product; products 32 columns wide were wrong on sm_90 (Triton 3.6, docs/log.md)


def power_of_two(size: int, least: int) -> int:
    """The tile that holds `size` of something."""
    return max(least, 1 << (size - 1).bit_length())


def pairs_tile(state: int) -> int:
    """The tile that holds the pairs of `state` channels."""
    return power_of_two((state + 1) // 2, LEAST_TILE // 2)


def shape_class(head_size: int, state: int, rank: int, dtype: torch.dtype, architecture: str) -> ShapeClass:
    """What the tiles for a scan follow from."""
    tile = power_of_two(head_size, LEAST_TILE)
    return ShapeClass(architecture, tile, 2 * pairs_tile(state), padded_rank(rank), 8 * dtype.itemsize)


def segment_chunks(programs: int, chunks: int) -> int | None:
    """Chunks of a segment of the passes over the chunks, which take `programs` a segment; None: there is only one."""
    if programs >= PASS_ENOUGH:
        return None
    segments = min(PASS_PROGRAMS // programs, chunks // SEGMENT_CHUNKS)
    return -(-chunks // segments) if segments > 1 else None


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call."""

    B: int
    T: int
    H: int
    P: int
    N: int
    R: int
    G: int
    S: int
    tiles: Tiles
    segment: int | None = None  # chunks of a segment of the passes; None: one segment of all

    @classmethod
    def of(cls, given: Inputs) -> Sizes:
        """Those of a call, with the tiles for its shape, width and device."""
        batch, steps, heads, head_size = given.x.shape
        rank, groups, state = given.k.shape[2:]
        sizes = head_size, state, rank, given.x.dtype, architecture(given.x.device)
        n = cls(
            batch, steps, heads, head_size, state, rank, groups, given.angle.shape[2], tiles_of(shape_class(*sizes))
        )
        return replace(n, segment=segment_chunks(n.B * n.H * n.state_parts, n.chunks))

    @property
    def steps(self) -> int:
        """Steps of a chunk."""
        return self.tiles.steps(self.R)

    @property
    def chunks(self) -> int:
        return -(-self.T // self.steps)

    @property
    def segments(self) -> int:
        """Segments that the passes over the chunks walk side by side; the last may be shorter."""
        return 1 if self.segment is None else -(-self.chunks // self.segment)

    @property
    def heads_phase(self) -> int:
        """Heads of one program of the phases, a power of two: fewer where a head turns more than 32 pairs."""
        return max(1, min(power_of_two(self.H, 1), self.tiles.heads_phase * 32 // self.block_s))

    @property
    def phase_grid(self) -> tuple[int, int, int]:
        """Chunks, batch, head blocks."""
        return self.chunks, self.B, -(-self.H // self.heads_phase)

    @property
    def state_parts(self) -> int:
        """How many programs share a state in the passes over the chunks."""
        return -(-((self.N + 1) // 2) // PASS_PAIRS)

    @property
    def N2(self) -> int:
        """N, or the next even number: the channels of pairs that lie side by side."""
        return 2 * ((self.N + 1) // 2)

    @property
    def coefficient_grid(self) -> tuple[int, int, int]:
        return -(-self.T // COEFFICIENT_TILE["STEPS"]), -(-self.H // COEFFICIENT_TILE["HEADS"]), self.B

    @property
    def block_s(self) -> int:
        return power_of_two(self.S, 32)

    def channels(self, launch: ChannelLaunch) -> dict[str, int]:
        """How a kernel takes the pairs: PARTS tiles of HALF."""
        pairs = pairs_tile(self.N)
        parts = max(1, pairs // launch.pairs)
        return {"HALF": pairs // parts, "PARTS": parts}

    def matrix(self, launch: ChannelLaunch, dtype: torch.dtype) -> dict[str, Any]:
        """The compile-time arguments of a kernel that multiplies matrices."""
        return {
            "S": self.S, "P": self.P, "N": self.N, "G": self.G, "R": self.R, "RANK": padded_rank(self.R),
            "STEPS": self.steps, "BLOCK_P": power_of_two(self.P, LEAST_TILE),
            "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32", "AHEAD": chunks_ahead(self.H),
            **self.channels(launch),
        }  # fmt: skip

    def state_pass(self) -> dict[str, Any]:
        """The compile-time arguments of the passes over the chunks."""
        return {
            "S": self.S, "N": self.N, "P": self.P, "BLOCK_N": PASS_PAIRS, "BLOCK_P": power_of_two(self.P, LEAST_TILE),
            "STAGES": stages(PASS_STAGES),
        }  # fmt: skip


@dataclass
class Phases:
    """What `coefficients_kernel` and `phase_forward_kernel` write; the rate is in counts of 2^-32 turn."""

    phase_BHTS: Tensor
    total_BHCS: Tensor
    dt_BHT: Tensor
    g_BHT: Tensor
    scale_BHT: Tensor
    gamma_BHT: Tensor
    rate_BTS: Tensor


@dataclass
class Inputs:
    """The tensors of one call, in the order of `ScanFn.apply`; B and C come normalised as k and q."""

    x: Tensor  # [B, T, H, P], any strides but the last
    z: Tensor
    q: Tensor  # [B, T, R, G, N], dense
    k: Tensor
    dd_dt: Tensor  # [B, T, H], rows of one stride
    dd_a: Tensor
    trap: Tensor
    angle: Tensor  # [B, T, S]
    dt_bias: Tensor  # fp32 from here on: [H]
    q_bias: Tensor  # [H, R, N]
    k_bias: Tensor
    skip: Tensor  # [H]
    norm: Tensor | None  # [H, P]
    expand_x: Tensor | None  # [H, R, P]
    expand_z: Tensor | None
    combine: Tensor | None
    initial: Tensor | None  # [B, H, N, P], in the frame of the first step's phase
    sequence: Tensor | None  # int32 [T]: the number of each step's packed sequence
    valid: Tensor | None  # bool [B, T]
    next: Tensor | None  # int32 [B, T]: the next valid step, T where there is none
    previous: Tensor | None  # int32 [B, T]: the last valid step before, T where there is none

    def matrices(self) -> tuple[Tensor, ...]:
        """What every kernel that multiplies reads first."""
        return self.q, self.k, self.q_bias, self.k_bias

    def narrow_biases(self) -> Inputs:
        """With the biases as the launches of a 16-bit call with ranks read them: fp16, within 2^-11.

        Each row reads the bias of its rank; in fp32 a third of a warp's lookups in the cache were biases. From 65,520
        on a bias is infinite and y of its head NaN; a check would wait for the device.
        """
        if self.k_bias.shape[1] == 1 or self.x.dtype.itemsize > 2:
            return self
        return replace(self, q_bias=self.q_bias.half(), k_bias=self.k_bias.half())

    def strides(self) -> tuple[int, ...]:
        """The row strides of the control projection."""
        return tuple(t.stride(1) for t in (self.dd_dt, self.dd_a, self.trap, self.angle))
