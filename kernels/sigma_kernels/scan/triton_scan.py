"""The Mamba-3 scan on the GPU: its launches forward and backward.

    coefficients, phase_forward   numbers of the recurrence; phases and decays inside each chunk
    chunk_outer, state_pass       what each chunk adds to the state; the states at the chunk borders (`triton_segments`)
    scan_output                   Y from the states and inside the chunk; D, norm, gate

The backward keeps the raw inputs and the states, and recomputes phases, Q, K and Y.

    norm_backward                 only with a norm before the gate: dY
    chunk_outer_backward, state_pass_backward
    value_gradient, matrix_gradient   inside a chunk
    over_heads                    sums over the heads that share B and C
    phase_backward, coefficients_backward
"""

# The type checker counts the arguments of a launch as those of a Python call, without what is unpacked into it.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sigma_kernels import counters
from sigma_kernels.pipelining import stages
from sigma_kernels.scan.triton_call import (
    COEFFICIENT_TILE,
    OVER_HEADS_STAGES,
    PHASE_BACKWARD_STEPS,
    PHASE_STEPS,
    Inputs,
    Phases,
    Sizes,
    power_of_two,
)
from sigma_kernels.scan.triton_coefficients import coefficients_backward_kernel, coefficients_kernel
from sigma_kernels.scan.triton_gradients import matrix_gradient_kernel, over_heads_kernel, value_gradient_kernel
from sigma_kernels.scan.triton_launch import padded_rank
from sigma_kernels.scan.triton_output import norm_backward_kernel, scan_output_kernel
from sigma_kernels.scan.triton_phase import phase_backward_kernel, phase_forward_kernel
from sigma_kernels.scan.triton_segments import segment_borders
from sigma_kernels.scan.triton_states import (
    chunk_outer_backward_kernel,
    chunk_outer_kernel,
    state_pass_backward_kernel,
    state_pass_kernel,
)


class ScanFn(Function):
    """apply(*Inputs) -> (y, final fp32 [B, H, N, P] in the frame of the last step, phase total int32 [B, H, S])."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        counters.add("scan.forward")
        given = Inputs(*tensors).narrow_biases()
        n = Sizes.of(given)
        with torch.cuda.device_of(given.x):
            y, starts, final, phases = launch_forward(n, given)
        ctx.n = n
        ctx.save_for_backward(*vars(given).values(), starts, final)
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


def launch_forward(n: Sizes, given: Inputs) -> tuple[Tensor, Tensor, Tensor, Phases]:
    """(y, the states at the starts of the chunks, the last state, phases)."""
    x, z = given.x, given.z
    phases = make_phases(n, given)
    starts, final = _states(n, given, phases)
    y = torch.empty(n.B, n.T, n.H, n.P, dtype=x.dtype, device=x.device)
    scan_output_kernel[(n.H, n.chunks, n.B)](
        *given.matrices(), phases.phase_BHTS, x, z, given.expand_x, given.expand_z, given.combine,
        phases.g_BHT, phases.scale_BHT, phases.gamma_BHT, given.skip, given.norm, starts, given.sequence, y,
        n.T, n.H, *x.stride()[:3], *z.stride()[:3], **n.matrix(n.tiles.output, x.dtype), **n.tiles.output.options(),
    )  # fmt: skip
    return y, starts, final, phases


def make_phases(n: Sizes, given: Inputs) -> Phases:
    """The numbers of the recurrence, and the phases inside the chunks."""
    stored = torch.int32 if given.x.dtype == torch.float32 else torch.int16
    device = given.x.device
    dt, log_decay, g, scale, gamma = torch.empty(5, n.B, n.H, n.T, dtype=torch.float32, device=device)
    rate = torch.empty(n.B, n.T, n.S, dtype=torch.float32, device=device)
    coefficients_kernel[n.coefficient_grid](
        given.dd_dt, given.dd_a, given.trap, given.angle, given.dt_bias, given.valid, given.next,
        dt, log_decay, scale, gamma, rate, n.T, n.H, n.S, *given.strides(), BLOCK_S=n.block_s, **COEFFICIENT_TILE,
    )  # fmt: skip
    phase = torch.empty(n.B, n.H, n.T, n.S, dtype=stored, device=device)
    total = torch.empty(n.B, n.H, n.chunks, n.S, dtype=torch.int32, device=device)
    phase_forward_kernel[n.phase_grid](
        rate, dt, log_decay, phase, total, g, n.T, n.H, n.S,
        HEADS=n.heads_phase, BLOCK_S=n.block_s, STEPS=n.steps, AT_ONCE=PHASE_STEPS, **n.tiles.phase.options(),
    )  # fmt: skip
    return Phases(phase, total, dt, g, scale, gamma, rate)


def _states(n: Sizes, given: Inputs, phases: Phases) -> tuple[Tensor, Tensor]:
    """(the states at the starts of the chunks [B, H, C, N2, P], the last state, fp32)."""
    x = given.x
    added = torch.empty(n.B, n.H, n.chunks, n.N2, n.P, dtype=x.dtype, device=x.device)
    chunk_outer_kernel[(n.H, n.chunks, n.B)](
        given.k, given.k_bias, phases.phase_BHTS, x, given.expand_x, phases.g_BHT, phases.scale_BHT,
        given.sequence, added, n.T, n.H, *x.stride()[:3],
        **n.matrix(n.tiles.outer, x.dtype), **n.tiles.outer.options(),
    )  # fmt: skip
    return pass_states(n, given, phases, added)


def pass_states(n: Sizes, given: Inputs, phases: Phases, added: Tensor) -> tuple[Tensor, Tensor]:
    """`_states` from what each chunk adds."""
    starts = torch.empty_like(added)
    final = torch.empty(n.B, n.H, n.N, n.P, dtype=torch.float32, device=added.device)
    initial = segment_borders(n, phases, given.sequence, added, given.initial)
    state_pass_kernel[(n.B * n.H, n.state_parts, n.segments)](
        added, starts, initial, final, phases.g_BHT, phases.total_BHCS, given.sequence,
        n.T, n.H, n.chunks, n.steps, n.segment, **n.state_pass(), **n.tiles.state_pass.options(),
    )  # fmt: skip
    return starts, final


def launch_backward(
    n: Sizes, given: Inputs, starts: Tensor, final: Tensor, dout: Tensor, dfinal: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of `Inputs`, in their order."""
    phases = make_phases(n, given)
    dout, dz = dout.contiguous(), torch.empty(given.z.shape, dtype=given.z.dtype, device=given.z.device)
    norm = given.norm if given.combine is None else None
    given_parts = {
        "skip": given.skip, "norm": norm, "expand_x": given.expand_x, "expand_z": given.expand_z,
        "combine": given.combine,
    }  # fmt: skip
    parts = {name: _part(n, tensor) for name, tensor in given_parts.items()}
    dy = _rows(n, given, n.R, n.H, n.P)
    through_gate: Tensor | None = dout
    if given.norm is not None:
        _norm_backward(n, given, phases, starts, dout, dy, dz, parts)
        through_gate = None  # dY and dz are made
    dend, dinitial, restarts = _state_gradients(n, given, phases, starts, final, through_gate, dy, dfinal.contiguous())
    dx, *numbers = _value_gradients(n, given, phases, starts, dend, through_gate, dy, dz, parts)
    dq_head, dk_head, dphase = _matrix_gradients(n, given, phases, starts, dend, dy)
    dq, dq_bias = over_heads(n, given, phases, dq_head, given.q, given.q_bias)
    dk, dk_bias = over_heads(n, given, phases, dk_head, given.k, given.k_bias)
    dcontrol = phase_gradients(n, given, phases, *numbers, dphase, *restarts)
    sums = (None if part is None else part.sum(0) for part in parts.values())
    dskip, dnorm, dexpand_x, dexpand_z, dcombine = sums
    if dcombine is not None and given.combine is not None and given.norm is not None:  # parts are of their product's
        dnorm, dcombine = (dcombine * given.combine).sum(1), dcombine * given.norm[:, None]
    return (
        dx, dz, dq, dk, *dcontrol, dq_bias, dk_bias, dskip, dnorm, dexpand_x, dexpand_z, dcombine,
        None if given.initial is None else dinitial, None, None, None, None,
    )  # fmt: skip


def _part(n: Sizes, like: Tensor | None) -> Tensor | None:
    """Room for one partial sum of each program, to be summed in a fixed order."""
    if like is None:
        return None
    return torch.empty(n.B * n.chunks, *like.shape, dtype=torch.float32, device=like.device)


def _rows(n: Sizes, given: Inputs, *shape: int) -> Tensor:
    return torch.empty(n.B, n.T, *shape, dtype=given.x.dtype, device=given.x.device)


def _norm_backward(
    n: Sizes, given: Inputs, phases: Phases, starts: Tensor, dout: Tensor, dy: Tensor, dz: Tensor,
    parts: dict[str, Tensor | None],
) -> None:  # fmt: skip
    """Fills dY [B, T, R, H, P], dz, and the parts of norm, expand_z and combine."""
    x, z = given.x, given.z
    norm_backward_kernel[(n.H, n.chunks, n.B)](
        *given.matrices(), phases.phase_BHTS, x, z, given.expand_x, given.expand_z, given.combine,
        phases.g_BHT, phases.scale_BHT, phases.gamma_BHT, given.skip, given.norm, starts, given.sequence,
        dout, dy, dz, parts["norm"], parts["expand_z"], parts["combine"],
        n.T, n.H, *x.stride()[:3], *z.stride()[:3], **n.matrix(n.tiles.norm_backward, x.dtype),
        **n.tiles.norm_backward.options(),
    )  # fmt: skip


def _state_gradients(
    n: Sizes, given: Inputs, phases: Phases, starts: Tensor, final: Tensor, dout: Tensor | None, dy: Tensor,
    dfinal: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """(gradient of the states at the chunks' ends, of the initial state, the restarts of decay and phase).

    Fills dY from dout, unless dout is None.
    """
    z, dstart = given.z, torch.empty_like(starts)
    chunk_outer_backward_kernel[(n.H, n.chunks, n.B)](
        given.q, given.q_bias, phases.phase_BHTS, dout, z, given.expand_z, given.combine, dy, phases.g_BHT,
        given.sequence, dstart, n.T, n.H, *z.stride()[:3],
        **n.matrix(n.tiles.outer, starts.dtype), **n.tiles.outer.options(),
    )  # fmt: skip
    return pass_state_gradients(n, given, phases, starts, final, dstart, dfinal)


def pass_state_gradients(
    n: Sizes, given: Inputs, phases: Phases, starts: Tensor, final: Tensor, dstart: Tensor, dfinal: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """`_state_gradients` from what each chunk's outputs send to the state that enters it."""
    dend, dinitial = torch.empty_like(starts), torch.empty_like(final)
    restarts = (
        final.new_empty(n.B * n.H, n.chunks, n.state_parts),
        final.new_empty(n.B * n.H, n.chunks, n.S),
    )
    dfinals = segment_borders(n, phases, given.sequence, dstart, dfinal, back=True)
    state_pass_backward_kernel[(n.B * n.H, n.state_parts, n.segments)](
        dstart, dend, starts, final, dfinals, dinitial, phases.g_BHT, phases.total_BHCS, given.sequence, *restarts,
        n.T, n.H, n.chunks, n.steps, n.segment, **n.state_pass(), **n.tiles.state_pass.options(),
    )  # fmt: skip
    return dend, dinitial, restarts


def _value_gradients(
    n: Sizes, given: Inputs, phases: Phases, starts: Tensor, dend: Tensor, dout: Tensor | None, dy: Tensor,
    dz: Tensor, parts: dict[str, Tensor | None],
) -> tuple[Tensor, ...]:  # fmt: skip
    """(dx, <q, dq>, d scale, d gamma); with dout, fills dz and what belongs to the gate."""
    x, z = given.x, given.z
    dx = _rows(n, given, n.H, n.P)
    numbers = tuple(torch.empty_like(phases.g_BHT) for _ in range(3))
    value_gradient_kernel[(n.H, n.chunks, n.B)](
        *given.matrices(), phases.phase_BHTS, x, z, given.expand_x, given.expand_z, given.combine,
        phases.g_BHT, phases.scale_BHT, phases.gamma_BHT, given.skip, starts, dend, given.sequence, dout, dy,
        dx, dz, *numbers, parts["skip"], parts["expand_x"], parts["expand_z"], parts["combine"],
        n.T, n.H, *x.stride()[:3], *z.stride()[:3], **n.matrix(n.tiles.value, x.dtype), **n.tiles.value.options(),
    )  # fmt: skip
    return dx, *numbers


def _matrix_gradients(
    n: Sizes, given: Inputs, phases: Phases, starts: Tensor, dend: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(the turned dq and dk of each head, d phase)."""
    x = given.x
    dq, dk = _rows(n, given, n.R, n.H, n.N2), _rows(n, given, n.R, n.H, n.N2)
    dphase = torch.empty(n.B, n.H, n.T, n.S, dtype=torch.float32, device=x.device)  # bf16 would cost d angle 4e-3
    matrix_gradient_kernel[(n.H, n.chunks, n.B)](
        *given.matrices(), phases.phase_BHTS, x, given.expand_x, phases.g_BHT, phases.scale_BHT, phases.gamma_BHT,
        starts, dend, given.sequence, dy, dq, dk, dphase, n.T, n.H, *x.stride()[:3],
        **n.matrix(n.tiles.matrix, x.dtype), **n.tiles.matrix.options(),
    )  # fmt: skip
    return dq, dk, dphase


def over_heads(
    n: Sizes, given: Inputs, phases: Phases, head_BTRHN: Tensor, matrix: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """(the gradient of one matrix, of its bias) from the turned one of each head."""
    rank, channels = padded_rank(n.R), n.channels(n.tiles.over_heads)
    steps = max(1, n.tiles.sum_rows // rank)
    blocks = -(-n.T // steps)
    out = torch.empty_like(matrix)
    biases = torch.empty(n.B * blocks, *bias.shape, dtype=torch.float32, device=bias.device)
    over_heads_kernel[(blocks, n.G * channels["PARTS"], n.B)](
        head_BTRHN, phases.phase_BHTS, out, biases, n.T, n.H,
        S=n.S, N=n.N, G=n.G, R=n.R, RANK=rank, STEPS=steps, HALF=channels["HALF"], STAGES=stages(OVER_HEADS_STAGES),
        **n.tiles.over_heads.options(),
    )  # fmt: skip
    return out, biases.sum(0)


def phase_gradients(
    n: Sizes, given: Inputs, phases: Phases, rq: Tensor, dscale: Tensor, dgamma: Tensor, dphase: Tensor,
    decay_restart: Tensor, phase_restart: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of dd_dt, dd_a, trap, angle and dt_bias."""
    dlog_decay, ddt = torch.empty(2, n.B, n.H, n.T, dtype=torch.float32, device=rq.device)
    dangle = torch.empty(n.phase_grid[2], n.B, n.T, n.S, dtype=torch.float32, device=rq.device)
    phase_backward_kernel[n.phase_grid](
        phases.rate_BTS, phases.dt_BHT, phases.scale_BHT, given.sequence, rq, dscale, dphase,
        decay_restart, phase_restart, dlog_decay, ddt, dangle,
        n.T, n.H, n.S, n.state_parts,
        HEADS=n.heads_phase, BLOCK_S=n.block_s, STEPS=n.steps, BLOCK_RESTART=power_of_two(n.state_parts, 1),
        AT_ONCE=PHASE_BACKWARD_STEPS, **n.tiles.phase_backward.options(),
    )  # fmt: skip
    inputs = (given.dd_dt, given.dd_a, given.trap)
    outputs = tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs)
    grid = n.coefficient_grid
    dbias = rq.new_empty(n.B * grid[0], n.H)
    coefficients_backward_kernel[grid](
        *inputs, given.dt_bias, given.valid, given.previous, ddt, dlog_decay, dscale, dgamma, *outputs, dbias,
        n.T, n.H, *given.strides()[:3], **COEFFICIENT_TILE,
    )  # fmt: skip
    return *outputs, dangle.sum(0).to(given.angle.dtype), dbias.sum(0)
