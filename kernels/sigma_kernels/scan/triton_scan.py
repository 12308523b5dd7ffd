"""The Mamba-3 scan on the GPU: five kernels forward, six backward, all of them parallel over time.

    phase_forward      phases and decays inside each chunk
    chunk_outer        what each chunk adds to the state
    state_pass         the states at the chunk borders
    scan_output        Y from the states and inside the chunk; D, norm, gate

The backward keeps the raw inputs and the states, and recomputes phases, Q, K and Y.
"""

# The type checker counts the arguments of a launch as those of a Python call, without what is unpacked into it.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sigma_kernels import counters, dispatch
from sigma_kernels.scan.triton_coefficients import coefficients_backward_kernel, coefficients_kernel
from sigma_kernels.scan.triton_gradients import key_gradient_kernel, query_gradient_kernel, value_gradient_kernel
from sigma_kernels.scan.triton_launch import Tiles, padded_rank, tiles_of
from sigma_kernels.scan.triton_output import output_backward_kernel, scan_output_kernel
from sigma_kernels.scan.triton_phase import phase_backward_kernel, phase_forward_kernel
from sigma_kernels.scan.triton_states import chunk_outer_kernel, state_pass_backward_kernel, state_pass_kernel

COEFFICIENT_TILE = {"STEPS": 64, "HEADS": 16}
PASS_PAIRS = 16  # pairs of a program of the state passes, with all of P


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call and what follows from them."""

    B: int
    T: int
    H: int
    P: int
    N: int
    R: int
    G: int
    S: int
    tiles: Tiles

    @property
    def chunks(self) -> int:
        return -(-self.T // self.chunk_steps)

    @property
    def chunk_steps(self) -> int:
        return self.tiles.steps * self.tiles.blocks

    @property
    def pair_blocks(self) -> int:
        return -(-((self.N + 1) // 2) // PASS_PAIRS)

    @property
    def channel_parts(self) -> int:
        """How many programs share the channels of one block of rows in the gradients of q and k."""
        return self.parts_of(self.tiles.pairs)

    def parts_of(self, pairs: int) -> int:
        """Into how many tiles of at most `pairs` the pairs of channels fall."""
        return max(1, power_of_two((self.N + 1) // 2) // pairs)

    @property
    def coefficient_grid(self) -> tuple[int, int, int]:
        return -(-self.T // COEFFICIENT_TILE["STEPS"]), -(-self.H // COEFFICIENT_TILE["HEADS"]), self.B

    @property
    def row_blocks(self) -> int:
        return self.chunks * self.tiles.blocks

    @property
    def block_s(self) -> int:
        return power_of_two(self.S, least=32)

    def matrix(self, dtype: torch.dtype, pairs: int) -> dict[str, Any]:
        """The compile-time arguments of a kernel that multiplies matrices in tiles of `pairs` pairs of channels."""
        parts = self.parts_of(pairs)
        return {
            "S": self.S, "P": self.P, "N": self.N, "G": self.G, "R": self.R, "RANK": padded_rank(self.R),
            "STEPS": self.tiles.steps, "BLOCKS": self.tiles.blocks,
            "HALF": power_of_two((self.N + 1) // 2) // parts, "PARTS": parts, "BLOCK_P": power_of_two(self.P),
            "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        }  # fmt: skip


LEAST_TILE = 64


def power_of_two(size: int, least: int = LEAST_TILE) -> int:
    """The tile that holds `size` channels. Tiles of 32 channels were wrong on sm_90 (Triton 3.6, docs/log.md)."""
    return max(least, 1 << (size - 1).bit_length())


@dataclass
class Phases:
    """What `coefficients_kernel` and `phase_forward_kernel` write."""

    phase_BHTS: Tensor
    total_BHCS: Tensor
    dt_BHT: Tensor
    g_BHT: Tensor
    scale_BHT: Tensor
    gamma_BHT: Tensor


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

    def strides(self) -> tuple[int, ...]:
        """The row strides of the control projection."""
        return tuple(t.stride(1) for t in (self.dd_dt, self.dd_a, self.trap, self.angle))


class ScanFn(Function):
    """apply(*Inputs) -> (y, final fp32 [B, H, N, P] in the frame of the last step, phase total int32 [B, H, S])."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        counters.add("scan.forward")
        given = Inputs(*tensors)
        groups, state = given.k.shape[3:]
        tiles = tiles_of(given.k.shape[2], given.x.shape[2], groups, _capability(given.x.device))
        n = Sizes(*given.x.shape, state, given.k.shape[2], groups, given.angle.shape[2], tiles)
        with torch.cuda.device_of(given.x):
            y, starts, final, phases = launch_forward(n, given)
        ctx.n = n
        ctx.save_for_backward(*tensors, starts, final)
        total_BHS = phases.total_BHCS.sum(2, dtype=torch.int32)
        ctx.mark_non_differentiable(total_BHS)
        return y, final, total_BHS

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        counters.add("scan.backward")
        *tensors, starts, final = ctx.saved_tensors  # once: activation checkpointing allows no second read
        with torch.cuda.device_of(starts):
            return launch_backward(ctx.n, Inputs(*tensors), starts, final, grads[0], grads[1])


@cache
def _capability(device: torch.device) -> int:
    """90 for compute capability 9.0, also in the interpreter."""
    if dispatch.interpreting():
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _phases(n: Sizes, given: Inputs) -> Phases:
    stored = torch.int32 if given.x.dtype == torch.float32 else torch.int16
    device, heads = given.x.device, n.tiles.heads_phase
    dt, log_decay, g, scale, gamma = torch.empty(5, n.B, n.H, n.T, dtype=torch.float32, device=device)
    coefficients_kernel[n.coefficient_grid](
        given.dd_dt, given.dd_a, given.trap, given.dt_bias, given.valid, given.next, dt, log_decay, scale, gamma,
        n.T, n.H, *given.strides()[:3], **COEFFICIENT_TILE,
    )  # fmt: skip
    phase = torch.empty(n.B, n.H, n.T, n.S, dtype=stored, device=device)
    total = torch.empty(n.B, n.H, n.chunks, n.S, dtype=torch.int32, device=device)
    phase_forward_kernel[(n.chunks, n.B, n.H // heads)](
        given.angle, dt, log_decay, phase, total, g, n.T, n.H, n.S, given.angle.stride(1),
        HEADS=heads, BLOCK_S=n.block_s, STEPS=n.chunk_steps, **n.tiles.phase.options(),
    )  # fmt: skip
    return Phases(phase, total, dt, g, scale, gamma)


def _outer(
    n: Sizes, matrix: Tensor, bias: Tensor, phases: Phases, rows: Tensor, strides: tuple[int, ...],
    expand: Tensor | None, scale: Tensor | None, sequence: Tensor | None,
) -> Tensor:  # fmt: skip
    out = torch.empty(n.B, n.H, n.chunks, n.N, n.P, dtype=rows.dtype, device=rows.device)
    chunk_outer_kernel[(n.H, n.chunks, n.B * n.parts_of(n.tiles.pairs_outer))](
        matrix, bias, phases.phase_BHTS, rows, expand, phases.g_BHT, scale, sequence, out, n.T, n.H, *strides,
        **n.matrix(rows.dtype, n.tiles.pairs_outer), **n.tiles.outer.options(),
    )  # fmt: skip
    return out


def launch_forward(n: Sizes, given: Inputs) -> tuple[Tensor, Tensor, Tensor, Phases]:
    """(y, the states at the starts of the chunks, the last state, phases)."""
    x, z = given.x, given.z
    phases = _phases(n, given)
    rows = (x.stride(0), x.stride(1), 0, x.stride(2))
    added = _outer(n, given.k, given.k_bias, phases, x, rows, given.expand_x, phases.scale_BHT, given.sequence)
    starts = torch.empty_like(added)
    final = torch.empty(n.B, n.H, n.N, n.P, dtype=torch.float32, device=x.device)
    state_pass_kernel[(n.B * n.H, n.pair_blocks, 1)](
        added, starts, given.initial, final, phases.g_BHT, phases.total_BHCS, given.sequence,
        n.T, n.H, n.chunks, n.chunk_steps, S=n.S, N=n.N, P=n.P, BLOCK_N=PASS_PAIRS, BLOCK_P=power_of_two(n.P), STAGES=3,
        **n.tiles.state_pass.options(),
    )  # fmt: skip
    y = torch.empty(n.B, n.T, n.H, n.P, dtype=x.dtype, device=x.device)
    scan_output_kernel[(n.H, n.row_blocks, n.B)](
        *given.matrices(), phases.phase_BHTS, x, z, given.expand_x, given.expand_z, given.combine,
        phases.g_BHT, phases.scale_BHT, phases.gamma_BHT, given.skip, given.norm, starts, given.sequence, y,
        n.T, n.H, *x.stride()[:3], *z.stride()[:3],
        **n.matrix(x.dtype, n.tiles.pairs_inside), **n.tiles.output.options(),
    )  # fmt: skip
    return y, starts, final, phases


def launch_backward(
    n: Sizes, given: Inputs, starts: Tensor, final: Tensor, dout: Tensor, dfinal: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of `Inputs`, in their order."""
    phases = _phases(n, given)
    dy, dz, through_gate = _output_backward(n, given, phases, starts, dout)
    rows = (n.T * n.R * n.H * n.P, n.R * n.H * n.P, n.H * n.P, n.P)
    dstart = _outer(n, given.q, given.q_bias, phases, dy, rows, None, None, given.sequence)
    dend, dinitial, restarts = _state_pass_backward(n, given, phases, starts, final, dstart, dfinal)
    dq, dq_bias, rq, dphase_q = _matrix_gradient(query_gradient_kernel, n, given, phases, starts, dy)
    dk, dk_bias, dscale, dphase_k = _matrix_gradient(key_gradient_kernel, n, given, phases, dend, dy)
    dx, dexpand_x, dgamma = _value_gradient(n, given, phases, dend, dy)
    dphases = (rq, dscale, dgamma, dphase_q, dphase_k, *restarts)
    dcontrol = _phase_backward(n, given, phases, dphases)
    dskip, dnorm, dexpand_z, dcombine = through_gate
    return (
        dx, dz, dq, dk, *dcontrol, dq_bias, dk_bias, dskip, dnorm, dexpand_x, dexpand_z, dcombine,
        None if given.initial is None else dinitial, None, None, None, None,
    )  # fmt: skip


def _part(n: Sizes, like: Tensor | None) -> Tensor | None:
    """Room for one partial sum of each program, to be summed in a fixed order."""
    if like is None:
        return None
    return torch.empty(n.B * n.row_blocks, *like.shape, dtype=torch.float32, device=like.device)


def _total(parts: Tensor | None) -> Tensor | None:
    return None if parts is None else parts.sum(0)


def _output_backward(
    n: Sizes, given: Inputs, phases: Phases, starts: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """(dY, dz, the gradients of skip, norm, expand_z and combine)."""
    x, z = given.x, given.z
    dy = torch.empty(n.B, n.T, n.R, n.H, n.P, dtype=x.dtype, device=x.device)
    dz = torch.empty(n.B, n.T, n.H, n.P, dtype=z.dtype, device=z.device)
    parts = tuple(_part(n, t) for t in (given.skip, given.norm, given.expand_z, given.combine))
    output_backward_kernel[(n.H, n.row_blocks, n.B)](
        *given.matrices(), phases.phase_BHTS, x, z, given.expand_x, given.expand_z, given.combine,
        phases.g_BHT, phases.scale_BHT, phases.gamma_BHT, given.skip, given.norm, starts, given.sequence,
        dout.contiguous(), dy, dz, *parts, n.T, n.H, *x.stride()[:3], *z.stride()[:3],
        **n.matrix(x.dtype, n.tiles.pairs_inside), **n.tiles.output_backward.options(),
    )  # fmt: skip
    return dy, dz, tuple(_total(t) for t in parts)


def _state_pass_backward(
    n: Sizes, given: Inputs, phases: Phases, starts: Tensor, final: Tensor, dstart: Tensor, dfinal: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """(gradient of the states at the chunks' ends, of the initial state, the restarts of decay and phase)."""
    dend, dinitial = torch.empty_like(starts), torch.empty_like(final)
    decay_restart = final.new_empty(n.B * n.H, n.chunks, n.pair_blocks)
    phase_restart = final.new_empty(n.B * n.H, n.chunks, n.S)
    state_pass_backward_kernel[(n.B * n.H, n.pair_blocks)](
        dstart, dend, starts, final, dfinal.contiguous(), dinitial, phases.g_BHT, phases.total_BHCS, given.sequence,
        decay_restart, phase_restart, n.T, n.H, n.chunks, n.chunk_steps,
        S=n.S, N=n.N, P=n.P, BLOCK_N=PASS_PAIRS, BLOCK_P=power_of_two(n.P), STAGES=3, **n.tiles.state_pass.options(),
    )  # fmt: skip
    return dend, dinitial, (decay_restart, phase_restart)


def _matrix_gradient(
    kernel: Any, n: Sizes, given: Inputs, phases: Phases, states: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(d matrix, d bias, <q, dq> or d scale in parts, d phase) by one of the two kernels that sum over heads."""
    x, heads = given.x, n.tiles.heads_matrix
    dmatrix = torch.empty(n.H // n.G // heads, *given.q.shape, dtype=torch.float32, device=x.device)
    dbias = torch.empty(n.B * n.row_blocks, *given.q_bias.shape, dtype=torch.float32, device=x.device)
    numbers = torch.empty(n.channel_parts, n.B, n.H, n.T, dtype=torch.float32, device=x.device)
    dphase = torch.empty(n.B, n.H, n.T, n.S, dtype=torch.float32, device=x.device)  # bf16 would cost d angle 4e-3
    kernel[(n.H // heads, n.row_blocks, n.B * n.channel_parts)](
        *given.matrices(), phases.phase_BHTS, x, given.expand_x, phases.g_BHT, phases.scale_BHT, phases.gamma_BHT,
        states, given.sequence, dy, dmatrix, dbias, numbers, dphase, n.T, n.H, *x.stride()[:3],
        HEADS=heads, **n.matrix(x.dtype, n.tiles.pairs), **n.tiles.matrix.options(),
    )  # fmt: skip
    return dmatrix.sum(0).to(given.q.dtype), dbias.sum(0), numbers, dphase


def _value_gradient(
    n: Sizes, given: Inputs, phases: Phases, dend: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(dx, d expand_x, d gamma)."""
    x = given.x
    dx = torch.empty(n.B, n.T, n.H, n.P, dtype=x.dtype, device=x.device)
    parts = _part(n, given.expand_x)
    dgamma = torch.empty_like(phases.g_BHT)
    value_gradient_kernel[(n.H, n.row_blocks, n.B)](
        *given.matrices(), phases.phase_BHTS, x, given.expand_x, phases.g_BHT, phases.scale_BHT, phases.gamma_BHT,
        given.skip, dend, given.sequence, dy, dx, parts, dgamma, n.T, n.H, *x.stride()[:3],
        **n.matrix(x.dtype, n.tiles.pairs_inside), **n.tiles.value.options(),
    )  # fmt: skip
    return dx, _total(parts), dgamma


def _phase_backward(n: Sizes, given: Inputs, phases: Phases, dphases: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of dd_dt, dd_a, trap, angle and dt_bias."""
    rq, dscale, dgamma, dphase_q, dphase_k, decay_restart, phase_restart = dphases
    heads = n.tiles.heads_phase
    dlog_decay, ddt = torch.empty(2, n.B, n.H, n.T, dtype=torch.float32, device=rq.device)
    dangle = torch.empty(n.H // heads, n.B, n.T, n.S, dtype=torch.float32, device=rq.device)
    phase_backward_kernel[(n.chunks, n.B, n.H // heads)](
        given.angle, phases.dt_BHT, phases.scale_BHT, given.sequence, rq, dscale, dphase_q, dphase_k,
        decay_restart, phase_restart, dlog_decay, ddt, dangle,
        n.T, n.H, n.S, given.angle.stride(1), n.channel_parts, n.pair_blocks,
        HEADS=heads, BLOCK_S=n.block_s, STEPS=n.chunk_steps, BLOCK_RESTART=power_of_two(n.pair_blocks, least=1),
        **n.tiles.phase_backward.options(),
    )  # fmt: skip
    inputs = (given.dd_dt, given.dd_a, given.trap)
    outputs = tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs)
    grid = n.coefficient_grid
    dbias = rq.new_empty(n.B * grid[0], n.H)
    coefficients_backward_kernel[grid](
        *inputs, given.dt_bias, given.valid, given.previous, ddt, dlog_decay, dscale, dgamma, *outputs, dbias,
        n.T, n.H, *given.strides()[:3], n.channel_parts, **COEFFICIENT_TILE,
    )  # fmt: skip
    return *outputs, dangle.sum(0).to(given.angle.dtype), dbias.sum(0)
