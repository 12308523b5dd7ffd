"""The states at the borders of segments of chunks, so that segments are walked side by side; forward and backward.

A program walks its chunks one after another, and few heads are few programs. A segment of chunks acts on the state as
one chunk does: it decays it, turns it, and adds what it makes of zero. Those three are found for all segments at once,
then composed over the segments; then the passes of `triton_states` start at every border.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels.scan.triton_call import Phases, Sizes
from sigma_kernels.scan.triton_states import block_of_pairs, chunk_decay, load_state, store_state, turned


@triton.jit
def segment_pass_kernel(
    added_ptr, border_ptr, decay_ptr, turn_ptr, g_ptr, total_ptr, sequence_ptr, T, chunks, steps, length,
    S: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """What each segment of `length` chunks makes of a zero state, its decay and its turn. BACK: of a zero gradient.

    Grid (B * H, pair blocks, segments - 1): nothing is behind the last segment, nor with BACK before the first. Reads
    `added` [B, H, C, N2, P]; stores fp32 border [B, H, segments, N, P], at the segment that it leads to, decay [B, H,
    segments], and turn, int32 [B, H, segments, S]. Needs BLOCK_P >= P.
    """
    row = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(2)
    to = segment + 1
    if BACK:
        segment, to = to, segment
    first = segment * length
    last = tl.minimum(first + length, chunks) - 1
    n, tile, border, low, high = block_of_pairs(N, P, BLOCK_N, BLOCK_P)
    s0 = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    s1 = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    whole = tl.full((), 1.0, tl.float32)
    turn = tl.zeros((BLOCK_N,), tl.int32)  # whole turns wrap
    for i in tl.range(0, last + 1 - first, num_stages=STAGES):
        chunk = first + i
        if BACK:
            chunk = last - i
        at = (row * chunks + chunk) * ((N + 1) // 2 * 2 * P) + border
        a0 = tl.load(added_ptr + at, mask=low, other=0.0).to(tl.float32)
        a1 = tl.load(added_ptr + at + P, mask=low, other=0.0).to(tl.float32)
        total = tl.load(total_ptr + (row * chunks + chunk) * S + n, mask=n < S, other=0)
        decay = chunk_decay(g_ptr + row * T, sequence_ptr, chunk, steps, T)
        whole *= decay
        turn += total
        if BACK:
            e0, e1 = turned(s0, s1, total, BACK)
            s0 = decay * e0 + a0
            s1 = decay * e1 + a1
        else:
            s0, s1 = turned(decay * s0 + a0, decay * s1 + a1, total, BACK)
    row *= tl.num_programs(2) + 1
    store_state(border_ptr, row + to, s0, s1, tile, low, high, N, P)
    tl.store(decay_ptr + row + segment, whole, mask=tl.program_id(1) == 0)
    tl.store(turn_ptr + (row + segment) * S + n, turn, mask=n < S)


@triton.jit
def border_pass_kernel(
    border_ptr, outer_ptr, decay_ptr, turn_ptr, segments,
    S: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, STAGES: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The state that enters each segment, from what `segment_pass_kernel` stored, in its place: fp32 [., N, P].

    The first is `outer` [B, H, N, P], or zero where that is None. BACK: the gradient of the state that leaves each,
    of which the last is `outer`. Grid (B * H, pair blocks).
    """
    row = tl.program_id(0).to(tl.int64)
    n, tile, _, low, high = block_of_pairs(N, P, BLOCK_N, BLOCK_P)
    s0, s1 = load_state(outer_ptr, row, tile, low, high, N, P)
    row *= segments
    at = row
    if BACK:
        at += segments - 1
    store_state(border_ptr, at, s0, s1, tile, low, high, N, P)
    for i in tl.range(0, segments - 1, num_stages=STAGES):
        own = row + i
        to = own + 1
        if BACK:
            own = row + segments - 1 - i
            to = own - 1
        own0, own1 = load_state(border_ptr, to, tile, low, high, N, P)
        decay = tl.load(decay_ptr + own)
        e0, e1 = turned(s0, s1, tl.load(turn_ptr + own * S + n, mask=n < S, other=0), BACK)
        s0 = decay * e0 + own0
        s1 = decay * e1 + own1
        store_state(border_ptr, to, s0, s1, tile, low, high, N, P)


def segment_borders(
    n: Sizes, phases: Phases, sequence: Tensor | None, added: Tensor, outer: Tensor | None, *, back: bool = False
) -> Tensor | None:
    """The states, fp32 [B, H, segments, N, P], from which the pass over the chunks starts each segment.

    `added` [B, H, C, N2, P] is what each chunk adds, `outer` [B, H, N, P] the state before all of them. `back`: the
    same of their gradients, from the end on. With one segment that is `outer`, and nothing is launched.
    """
    if n.segment is None:
        return outer
    border = torch.empty(n.B, n.H, n.segments, n.N, n.P, dtype=torch.float32, device=added.device)
    decay = border.new_empty(n.B, n.H, n.segments)
    turn = torch.empty(n.B, n.H, n.segments, n.S, dtype=torch.int32, device=added.device)
    options = {**n.state_pass(), **n.tiles.state_pass.options(), "BACK": back}
    segment_pass_kernel[(n.B * n.H, n.state_parts, n.segments - 1)](
        added, border, decay, turn, phases.g_BHT, phases.total_BHCS, sequence, n.T, n.chunks, n.steps, n.segment,
        **options,
    )  # fmt: skip
    border_pass_kernel[(n.B * n.H, n.state_parts)](border, outer, decay, turn, n.segments, **options)
    return border
