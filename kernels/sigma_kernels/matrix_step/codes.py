"""Fewer bits for what an optimizer keeps: int8 momentum in blocks, and bf16 weights with eight more bits beside them.

Blockwise linear int8 momentum for Muon: arXiv:2509.23106. Weight with residual (24 bits of a master): arXiv:2602.23349.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2048  # elements of a matrix, row by row, that share a scale
LEVELS = 127
SMALLEST_SCALE = 2.0**-126  # below it 1 / scale may be infinite, and the codes are 0
STEPS_PER_ULP = 254.0  # the residual's -127..127 spans one unit in the last place of the bf16 weight


def blocks_of(elements: int) -> int:
    """Scales of a matrix with so many elements."""
    return -(-elements // BLOCK)


def encode_int8(values_KMN: Tensor) -> tuple[Tensor, Tensor]:
    """(codes int8 `[K, m, n]`, scales fp32 `[K, blocks]`): scale = max |x| / 127 of a block, code = round(x / scale).

    The error of an element is at most half its block's scale; blocks below 127 * SMALLEST_SCALE become 0. One division
    a block: one an element, rounded as IEEE asks, is what the kernel would spend most of its time on.
    """
    flat = values_KMN.float().flatten(1)
    padding = blocks_of(flat.shape[1]) * BLOCK - flat.shape[1]
    blocks = torch.nn.functional.pad(flat, (0, padding)).unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(dim=2) / LEVELS
    inverse = torch.where(scale >= SMALLEST_SCALE, 1 / scale, 0.0)
    codes = (blocks * inverse[..., None]).clamp(-LEVELS, LEVELS).round()
    return codes.to(torch.int8).flatten(1)[:, : flat.shape[1]].reshape(values_KMN.shape).contiguous(), scale


def decode_int8(codes_KMN: Tensor, scale: Tensor) -> Tensor:
    """The values in fp32."""
    flat = codes_KMN.flatten(1).float()
    return (flat * scale.repeat_interleave(BLOCK, dim=1)[:, : flat.shape[1]]).reshape(codes_KMN.shape)


def encode_residual(values: Tensor) -> tuple[Tensor, Tensor]:
    """(bf16 weight, int8 residual) of fp32 values: 24 bits together, an error of at most ulp / 508."""
    weight = values.to(torch.bfloat16)
    steps = (values - weight.float()) * (STEPS_PER_ULP / _ulp(weight))
    return weight, steps.round().clamp(-LEVELS, LEVELS).to(torch.int8)


def decode_residual(weight: Tensor, residual: Tensor) -> Tensor:
    """The fp32 values: weight + residual * ulp / 254."""
    return weight.float() + residual.float() * (_ulp(weight) / STEPS_PER_ULP)


def _ulp(weight: Tensor) -> Tensor:
    """The distance of neighbouring bf16 numbers at `weight`, never below 2^-100."""
    exponent = weight.float().view(torch.int32) & 0x7F800000
    return exponent.view(torch.float32).clamp(min=2.0**-93) * 2.0**-7
