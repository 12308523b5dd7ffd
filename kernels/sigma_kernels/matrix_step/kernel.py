"""Momentum and weight steps in Triton: one pass over every tensor, on matrices where they lie.

A program owns `TILE` elements of one matrix. It finds the matrix by its address, which is why an update of hundreds of
matrices in dozens of parameters is one launch. Tiles are as long as a block of int8 codes, so that a program makes the
scale of its own block. No atomics; the same bits in every run.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels.matrix_step.blocks import ABSENT, ADDRESSES, BlockList
from sigma_kernels.matrix_step.codes import BLOCK, LEVELS, SMALLEST_SCALE, STEPS_PER_ULP
from sigma_kernels.matrix_step.reference import Decay, Form
from sigma_kernels.rounding import rounded_int8

TILE = BLOCK
ONE_WARP: dict[str, Any] = {"num_warps": 1}
WARPS = 4  # 16 elements a thread: four 16-byte loads of fp32 in flight for each tensor
WARPS_WITH_CODES = 2  # a 16-byte load holds 16 codes, and fewer warps wait for the scale of their block

CODE_LEVELS = tl.constexpr(float(LEVELS))
LEAST_SCALE = tl.constexpr(SMALLEST_SCALE)
RESIDUAL_STEPS = tl.constexpr(STEPS_PER_ULP)
ULPS_PER_STEP = tl.constexpr(1 / STEPS_PER_ULP)
NO_TENSOR = tl.constexpr(ABSENT)


@triton.jit(do_not_specialize=["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"])
def _write_addresses_kernel(out_ptr, a0, a1, a2, a3, a4, a5, a6, a7):
    tl.store(out_ptr, a0)
    tl.store(out_ptr + 1, a1)
    tl.store(out_ptr + 2, a2)
    tl.store(out_ptr + 3, a3)
    tl.store(out_ptr + 4, a4)
    tl.store(out_ptr + 5, a5)
    tl.store(out_ptr + 6, a6)
    tl.store(out_ptr + 7, a7)


@triton.jit
def _skipped(found_inf_ptr):
    return False if found_inf_ptr is None else tl.load(found_inf_ptr) != 0


@triton.jit
def _lerp(start, end, weight):
    """As torch.lerp: exact at both ends, which is why it starts from the nearer one."""
    near = weight < 0.5
    return tl.where(near, start, end) + tl.where(near, weight, weight - 1.0) * (end - start)


@triton.jit
def _code(x):
    """int8 of x, rounded to the nearest even, within what a code can say."""
    x = tl.minimum(tl.maximum(x, -CODE_LEVELS), CODE_LEVELS)  # also keeps a product apart from the sum that rounds it
    return rounded_int8(x)


@triton.jit
def _maxima(a, b, c, d):
    """Of the pairs (a, b) and (c, d); the second keeps what is not a number, as torch.amax does."""
    return tl.maximum(a, c), tl.maximum(b, d, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _momentum_step_kernel(
    address_ptr, owner_ptr, offset_ptr, momentum_ptr, scale_ptr, out_ptr, active_ptr, found_inf_ptr, beta, size,
    GRAD: tl.constexpr, FORM: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(size, TILE)
    k, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    at = tile * TILE + tl.arange(0, TILE)
    inside = at < size
    address = tl.load(address_ptr + tl.load(owner_ptr + k))
    there = address != NO_TENSOR
    grad_ptr = address.to(tl.pointer_type(GRAD)) + tl.load(offset_ptr + k)
    if ALIGNED:
        grad_ptr = tl.multiple_of(grad_ptr, 16)
    grad = tl.load(grad_ptr + at, mask=inside & there, other=0.0).to(tl.float32)
    here = k * size + at
    past = tl.load(momentum_ptr + here, mask=inside, other=0).to(tl.float32)
    if scale_ptr is not None:
        past *= tl.load(scale_ptr + k * tiles + tile)
    average = _lerp(past, grad, 1.0 - beta)
    if FORM == 0:
        out = _lerp(grad, average, beta)
    elif FORM == 1:
        out = average
    else:
        out = tl.where(average > 0, 1.0, tl.where(average < 0, -1.0, 0.0))
    tl.store(out_ptr + here, out.to(out_ptr.dtype.element_ty), mask=inside)
    # not a plain maximum: what is not a number must count as a gradient too
    some = tl.where(inside & ~(grad == 0), 1.0, 0.0)
    if scale_ptr is not None:
        some, largest = tl.reduce((some, tl.where(inside, tl.abs(average), 0.0)), 0, _maxima)
    else:
        some = tl.max(some, axis=0)
    if some > 0:
        tl.store(active_ptr + k, 1)
    if not _skipped(found_inf_ptr):
        if scale_ptr is not None:
            scale = tl.div_rn(largest, CODE_LEVELS)
            enough = scale >= LEAST_SCALE
            inverse = tl.where(enough, tl.div_rn(1.0, tl.where(enough, scale, 1.0)), 0.0)
            tl.store(scale_ptr + k * tiles + tile, scale)
            tl.store(momentum_ptr + here, _code(average * inverse), mask=inside)
        else:
            tl.store(momentum_ptr + here, average.to(momentum_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _ulp(weight):
    """The distance of neighbouring bf16 numbers, never below 2^-100."""
    exponent = (weight.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.maximum(exponent, 1.0097419586828951e-28) * 0.0078125  # 2^-93, 2^-7


@triton.jit
def _one_over_power(x):
    """1 / x of a power of two, exactly: a division rounded as IEEE asks takes dozens of instructions."""
    return (0x7F000000 - x.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def _weight_step_kernel(
    address_ptr, owner_ptr, offset_ptr, residual_ptr, direction_ptr, scale_ptr, rate_ptr, decay_ptr, active_ptr,
    found_inf_ptr, stride_rate, stride_decay, size,
    COLUMNS: tl.constexpr, SCALES: tl.constexpr, WEIGHT: tl.constexpr, CAUTIOUS: tl.constexpr,
    PROX: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(size, TILE)
    k, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    if _skipped(found_inf_ptr):
        return
    if tl.load(active_ptr + k) == 0:
        return
    at = tile * TILE + tl.arange(0, TILE)
    inside = at < size
    here = k * size + at
    address = tl.load(address_ptr + tl.load(owner_ptr + k))
    weight_ptr = address.to(tl.pointer_type(WEIGHT)) + tl.load(offset_ptr + k)
    if ALIGNED:
        weight_ptr = tl.multiple_of(weight_ptr, 16)
    now = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        fine = tl.load(residual_ptr + here, mask=inside, other=0).to(tl.float32)
        now += fine * (_ulp(now) * ULPS_PER_STEP)  # of a power of two: the quotient, rounded once
    update = tl.load(direction_ptr + here, mask=inside, other=0.0).to(tl.float32)
    if SCALES == 1:
        update *= tl.load(scale_ptr + k)
    elif SCALES == 2:  # one for each row
        update *= tl.load(scale_ptr + k * (size // COLUMNS) + at // COLUMNS, mask=inside, other=0.0)
    elif SCALES == 3:  # one for each column
        update *= tl.load(scale_ptr + k * COLUMNS + at % COLUMNS, mask=inside, other=0.0)
    rate, decay = tl.load(rate_ptr + k * stride_rate), tl.load(decay_ptr + k * stride_decay)
    factor = tl.where(update * now >= 0, decay, 1.0) if CAUTIOUS else decay
    moved = tl.fma(update, -rate, now) * factor if PROX else tl.fma(update, -rate, now * factor)
    if residual_ptr is not None:
        coarse = moved.to(tl.bfloat16)
        whole = coarse.to(tl.float32)
        steps = (moved - whole) * (RESIDUAL_STEPS * _one_over_power(_ulp(whole)))
        tl.store(residual_ptr + here, _code(steps), mask=inside)
        tl.store(weight_ptr + at, coarse, mask=inside)
    else:
        tl.store(weight_ptr + at, moved.to(WEIGHT), mask=inside)


def write_addresses(out_P: Tensor, addresses: Sequence[int]) -> None:
    """Write a table of addresses by launches that carry them: no copy from the host, nothing that a graph forbids."""
    with torch.cuda.device_of(out_P):
        for start in range(0, out_P.numel(), ADDRESSES):
            part = addresses[start : start + ADDRESSES]
            padded = [*part, *[ABSENT] * (ADDRESSES - len(part))]
            _write_addresses_kernel[(1,)](out_P[start:], *padded, **ONE_WARP)


def launch_momentum_step(
    blocks: BlockList,
    gradients: Sequence[Tensor | None],
    momentum_KMN: Tensor,
    scale: Tensor | None,
    *,
    beta: float,
    form: Form,
    found_inf: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See `op.momentum_step`."""
    blocks.views(gradients)  # refuses other shapes
    present = [g for g in gradients if g is not None]
    table = blocks.table("gradients", gradients)
    out_KMN = torch.empty(momentum_KMN.shape, dtype=dtype, device=momentum_KMN.device)
    active_K = torch.zeros(blocks.count, dtype=torch.int32, device=momentum_KMN.device)
    with torch.cuda.device_of(momentum_KMN):
        _momentum_step_kernel[_grid(blocks)](
            table.address_P, table.owner_K, table.offset_K, momentum_KMN, scale, out_KMN, active_K, found_inf, beta,
            blocks.rows * blocks.columns,
            GRAD=_type(present[0] if present else out_KMN), FORM=("nesterov", "average", "sign").index(form),
            **tile_of(blocks, "gradients", codes=scale is not None),
        )  # fmt: skip
    return out_KMN, active_K


def launch_weight_step(
    blocks: BlockList,
    weights: Sequence[Tensor],
    residual_KMN: Tensor | None,
    direction_KMN: Tensor,
    scale: Tensor | None,
    rate_K: Tensor,
    decay_K: Tensor,
    *,
    active_K: Tensor,
    decay: Decay,
    found_inf: Tensor | None,
) -> None:
    """See `op.weight_step`."""
    blocks.views(weights)
    table = blocks.table("weights", weights)
    shape = None if scale is None else tuple(scale.shape[1:])
    scales = {None: 0, (1, 1): 1, (blocks.rows, 1): 2, (1, blocks.columns): 3}[shape]
    with torch.cuda.device_of(direction_KMN):
        _weight_step_kernel[_grid(blocks)](
            table.address_P, table.owner_K, table.offset_K, residual_KMN, direction_KMN.contiguous(),
            None if scale is None else scale.contiguous(), rate_K, decay_K, active_K, found_inf,
            rate_K.stride(0), decay_K.stride(0), blocks.rows * blocks.columns,
            COLUMNS=blocks.columns, SCALES=scales, WEIGHT=_type(weights[0]), CAUTIOUS=decay.startswith("cautious"),
            PROX=decay.endswith("prox"), **tile_of(blocks, "weights", codes=residual_KMN is not None),
        )  # fmt: skip


def tile_of(blocks: BlockList, what: str, *, codes: bool) -> dict[str, Any]:
    """Compile-time arguments that both kernels share. ALIGNED: `BlockList.aligned` of the table `what`; `codes` says
    that momentum or residual is int8.

    The size of the matrices is not among them: it would compile both kernels anew for each shape of a model.
    """
    return {"ALIGNED": blocks.aligned(what), "TILE": TILE, "num_warps": WARPS_WITH_CODES if codes else WARPS}


def _grid(blocks: BlockList) -> tuple[int]:
    return (-(-blocks.rows * blocks.columns // TILE) * blocks.count,)


def _type(tensor: Tensor) -> Any:
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[tensor.dtype]
