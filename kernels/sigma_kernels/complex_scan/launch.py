"""Launches the complex scan's kernels: how the time is cut up, and the autograd function."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigma_kernels import counters, dispatch
from sigma_kernels.complex_scan.kernel import (
    _complex_scan_bwd_kernel,
    _complex_scan_fwd_kernel,
    _segment_map_kernel,
)

BLOCK_T = 64
BLOCK_LANES = 4
WARPS = 4
# Programs per multiprocessor that the segments aim at.
RESIDENT = 4
# A segment walks over the maps of all segments before it, so there must not be many.
MOST_SEGMENTS = 64


class ComplexScanFn(torch.autograd.Function):
    """`apply(x, a, b, state)` -> (y, last state)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        counters.add("complex_scan.forward")
        x, a, b, state = (_dense_pairs(t) for t in (x, a, b, state))
        y, last = launch_forward(x, a, b, state)
        ctx.save_for_backward(x, a, b, state, y)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        counters.add("complex_scan.backward")
        return launch_backward(_dense_pairs(dy), _dense_pairs(dlast), *ctx.saved_tensors, wanted=ctx.needs_input_grad)


def launch_forward(x: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """(y, last state)."""
    y, last = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, state))
    grid, sizes, tile = _cut(x)
    strides = (*x.stride()[:2], *_strides(a), *_strides(b))
    with torch.cuda.device_of(x):
        maps = _segment_maps(x, a, b, strides, reverse=False)
        arguments: list[Any] = [x, a, b, state, maps, y, last, *sizes, *strides, state.stride(0)]
        _complex_scan_fwd_kernel[grid](*arguments, **tile)
    return y, last


def launch_backward(
    dy: Tensor, dlast: Tensor, x: Tensor, a: Tensor, b: Tensor, state: Tensor, y: Tensor, *, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """(dx, da, db, dstate); None for what is not wanted."""
    grid, sizes, tile = _cut(x)

    def room(t: Tensor, want: bool) -> Tensor | None:
        shape = (grid[1], *t.shape) if t.dim() == 2 and t is not state else t.shape
        return torch.empty(shape, dtype=t.dtype, device=t.device) if want else None

    dx, da, db, dstate = (room(t, want) for t, want in zip((x, a, b, state), wanted, strict=True))
    strides = (*x.stride()[:2], *_strides(a), *_strides(b))
    with torch.cuda.device_of(x):
        maps = _segment_maps(dy, a, b, (*dy.stride()[:2], *strides[2:]), reverse=True)
        arguments: list[Any] = [dy, dlast, x, a, b, state, y, maps, dx, da, db, dstate, *sizes]
        arguments += [*dy.stride()[:2], dlast.stride(0), *strides, state.stride(0)]
        _complex_scan_bwd_kernel[grid](*arguments, **tile | {"SUM_A": a.dim() == 2, "SUM_B": b.dim() == 2})
    da = da.sum(0) if da is not None and a.dim() == 2 else da
    db = db.sum(0) if db is not None and b.dim() == 2 else db
    return dx, da, db, dstate


def _segment_maps(u: Tensor, a: Tensor, b: Tensor, strides: tuple[int, ...], *, reverse: bool) -> Tensor | None:
    grid, sizes, tile = _cut(u)
    if grid[1] == 1:
        return None
    maps = torch.empty((grid[1], 4, u.shape[0]), dtype=u.dtype, device=u.device)
    arguments: list[Any] = [u, a, b, maps, *sizes, *strides]
    _segment_map_kernel[grid](*arguments, **tile | {"REVERSE": reverse})
    return maps


def _cut(x: Tensor) -> tuple[tuple[int, int], tuple[int, int, int], dict[str, Any]]:
    """(grid of lane blocks and segments; lanes, steps and chunks per segment; compile-time arguments)."""
    lanes, steps = x.shape[:2]
    block_lanes = min(BLOCK_LANES, 1 << (lanes - 1).bit_length())
    blocks, chunks = -(-lanes // block_lanes), -(-steps // BLOCK_T)
    segments = max(1, min(chunks, MOST_SEGMENTS, _programs(x.device) // blocks))
    per_segment = -(-chunks // segments)
    grid = (blocks, -(-chunks // per_segment))
    tile = {"BLOCK_LANES": block_lanes, "BLOCK_T": BLOCK_T, "num_warps": WARPS, "num_stages": 1}
    return grid, (lanes, steps, per_segment), tile


@cache
def _programs(device: torch.device) -> int:
    """How many programs fill the device; in the interpreter so many that a few lanes get several segments."""
    if dispatch.interpreting():
        return 3
    return torch.cuda.get_device_properties(device).multi_processor_count * RESIDENT


def _strides(t: Tensor) -> tuple[int, int]:
    """Of lanes and time; what does not change in time has stride 0."""
    return (t.stride(0), t.stride(1)) if t.dim() == 3 else (t.stride(0), 0)


def _dense_pairs(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()
