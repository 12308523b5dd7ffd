"""What the scan's pipelined loops compute on a small example, for the self-test at the start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sigma_kernels.architecture import architecture
from sigma_kernels.scan.op import HIGHEST_RANK, WIDEST_HEAD, WIDEST_STATE
from sigma_kernels.scan.triton_call import Inputs, Sizes, shape_class
from sigma_kernels.scan.triton_launch import tiles_of
from sigma_kernels.scan.triton_scan import make_phases, over_heads, pass_state_gradients, pass_states

B, T, H = 1, 640, 8
ROWS, SEGMENT = 16, 10  # 40 chunks, the shortest that there are, in four segments: a pipeline of six fills and drains
DTYPE = torch.bfloat16


def pipelined_loops(
    device: torch.device, *, head_size: int = 64, state: int = 128, rank: int = 1, pairs: int = 32
) -> list[Tensor]:
    """The states at the chunk borders, their gradients, and sums over heads, from random numbers in place of the rest.

    The passes over the chunks come twice: in one segment, and in several, which have loops of their own.
    The sizes are compiled in: those of the model that comes next save it from compiling the same loops. Sizes that the
    kernels do not take are those of the largest that they do.
    """
    head_size, state, rank = min(head_size, WIDEST_HEAD), min(state, WIDEST_STATE), min(rank, HIGHEST_RANK)
    pairs = min(pairs, state // 2)
    tiles = replace(tiles_of(shape_class(head_size, state, rank, DTYPE, architecture(device))), rows=ROWS)
    n, generator = Sizes(B, T, H, head_size, state, rank, 1, pairs, tiles), torch.Generator(device).manual_seed(0)

    def normal(*size: int, shift: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(*size, generator=generator, device=device) + shift).to(dtype)

    given = _inputs(n, normal)
    phases = make_phases(n, given)
    added, dstart = normal(2, n.B, n.H, n.chunks, n.N2, n.P, dtype=DTYPE)
    dfinal = normal(B, H, state, head_size)
    heads, matrix = normal(B, T, rank, H, n.N2, dtype=DTYPE), normal(B, T, rank, 1, state, dtype=DTYPE)
    results = list(over_heads(n, given, phases, heads, matrix, normal(H, rank, state)))
    for sizes in (n, replace(n, segment=SEGMENT)):
        starts, final = pass_states(sizes, given, phases, added)
        dend, dinitial, restarts = pass_state_gradients(sizes, given, phases, starts, final, dstart, dfinal)
        results += [starts, final, dend, dinitial, *restarts]
    return results


def _inputs(n: Sizes, normal: Callable[..., Tensor]) -> Inputs:
    """Only what the loops read; the other tensors are empty."""
    none = normal(0)
    rows = {name: normal(n.B, n.T, n.H, dtype=DTYPE) for name in ("dd_dt", "dd_a", "trap")}
    return Inputs(
        x=normal(n.B, n.T, n.H, n.P, dtype=DTYPE), z=none, q=none, k=none, **rows,
        angle=normal(n.B, n.T, n.S, dtype=DTYPE), dt_bias=normal(n.H, shift=-3.0), q_bias=none, k_bias=none, skip=none,
        norm=None, expand_x=None, expand_z=None, combine=None, initial=None, sequence=None, valid=None, next=None,
        previous=None,
    )  # fmt: skip
