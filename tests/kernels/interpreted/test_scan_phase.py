"""The phases of the chunks, interpreted: bit for bit those of the torch path, and their gradients by plain sums."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma_kernels.scan.phase import TURN, quantize_turns, wrap_turns
from sigma_kernels.scan.prepare import coefficients, half_turns
from sigma_kernels.scan.triton_call import Inputs, Phases, Sizes, shape_class
from sigma_kernels.scan.triton_launch import tiles_of
from sigma_kernels.scan.triton_scan import make_phases, phase_gradients
from tests.kernels.tolerance import assert_close

# ragged steps, three head blocks of which the last is half empty, pairs that fill no tile
B, T, H, S, HEADS = 2, 37, 5, 6, 2
SEQUENCES = torch.tensor([0] * 3 + [1] * 17 + [2] * 1 + [3] * 16, dtype=torch.int32)  # borders inside chunks and at one


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def phases_of(dtype: torch.dtype, sequence: Tensor | None = None) -> tuple[Sizes, Inputs, Phases]:
    tiles = replace(tiles_of(shape_class(16, 32, 1, dtype, "sm_90")), rows=16, heads_phase=HEADS)
    control = [normal(B, T, H, seed=seed).to(dtype) for seed in range(3)]
    none: dict[str, None] = dict.fromkeys(
        ("norm", "expand_x", "expand_z", "combine", "initial", "valid", "next", "previous")
    )
    x = torch.empty(0, dtype=dtype)
    given = Inputs(
        x, x, x, x, *control, angle=normal(B, T, S, seed=3).to(dtype), dt_bias=normal(H, seed=4), q_bias=x, k_bias=x,
        skip=x, sequence=sequence, **none,
    )  # fmt: skip
    sizes = Sizes(B, T, H, 16, 32, 1, 1, S, tiles)
    return sizes, given, make_phases(sizes, given)


def chunks(x: Tensor, steps: int) -> list[Tensor]:
    """The chunks of [B, H, T, ...]."""
    return list(x.split(steps, dim=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["int32", "int16"])
def test_phases_and_totals_are_those_of_the_torch_path_bit_for_bit(dtype):
    n, given, phases = phases_of(dtype)
    assert n.phase_grid == (3, B, 3)
    rate = phases.rate_BTS / TURN
    assert_close("rate", rate, given.angle.double().tanh() / 2)
    counts = quantize_turns(phases.dt_BHT[..., None] * rate[:, None])
    sums = [wrap_turns(chunk.cumsum(2)) for chunk in chunks(counts, n.steps)]
    running = torch.cat(sums, 2)
    stored = running if dtype == torch.float32 else wrap_turns(running.long() + 2**15) >> 16
    assert torch.equal(phases.phase_BHTS.int(), stored)
    assert torch.equal(phases.total_BHCS, torch.stack([s[:, :, -1] for s in sums], 2))


def suffix_sums(x: Tensor, restart: Tensor, sequence: Tensor, steps: int) -> Tensor:
    """sum_{s >= t} x_s of [B, H, T, S] in t's chunk and sequence; the chunk's last step adds `restart` [B, H, C, S]."""
    x = x.double().clone()
    x[:, :, [*range(steps - 1, T - 1, steps), T - 1]] += restart
    step = torch.arange(T)
    ahead = (step[None] >= step[:, None]) & (step[None] // steps == step[:, None] // steps)
    return torch.einsum("ts,bhsi->bhti", (ahead & (sequence[None] == sequence[:, None])).double(), x)


@pytest.mark.parametrize("packed", [False, True], ids=["one sequence", "packed"])
def test_gradients_are_suffix_sums_of_each_chunk_and_sequence(packed):
    n, given, phases = phases_of(torch.float32, SEQUENCES if packed else None)
    rq, dscale = normal(2, B, H, T, seed=5)
    dphase, phase_restart = normal(B, H, T, S, seed=6), normal(B, H, 3, S, seed=7)
    decay_restart = normal(B, H, 3, n.state_parts, seed=8)
    found = phase_gradients(
        n, given, phases, rq, dscale, torch.zeros_like(rq), dphase, decay_restart.flatten(0, 1),
        phase_restart.flatten(0, 1),
    )  # fmt: skip

    leaves = [t.double().requires_grad_() for t in (given.dd_dt, given.dd_a, given.trap, given.angle, given.dt_bias)]
    dd_dt, dd_a, trap, angle, bias = leaves
    numbers = coefficients(dd_dt, dd_a, trap, bias, None)
    turns = numbers.dt_BTH.mT[..., None] * half_turns(angle)[:, None]
    scale = numbers.gamma_BTH + F.pad(numbers.left_BTH[:, 1:], (0, 0, 0, 1))
    r = (rq - phases.scale_BHT * dscale)[..., None]
    sequence = SEQUENCES if packed else torch.zeros(T)
    dlog_decay = suffix_sums(r, decay_restart.sum(3, keepdim=True), sequence, n.steps)[..., 0]
    dturns = 2 * math.pi * suffix_sums(dphase, phase_restart, sequence, n.steps)
    exact = torch.autograd.grad(
        [numbers.log_decay_BTH.mT, turns, scale.mT], leaves, [dlog_decay, dturns, dscale.double()]
    )
    for name, got, want in zip(("dd_dt", "dd_a", "trap", "angle", "dt_bias"), found, exact, strict=True):
        assert_close(name, got, want)
