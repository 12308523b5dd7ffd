"""How kernels that work on rows cut up a tensor: any tensor as a matrix of dense rows, and the tile of a program."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What kernels compute in fp32 and round once.
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# A row lives in the registers of one program; beyond this it would spill.
WIDEST = 16384
# Elements of a row that a program takes which does not need the whole row.
WIDEST_PART = 1024
# Elements in a tile: 16 per thread with 4 warps keeps two loads of each tensor in flight without spilling.
TILE = 2048


def row_tile(width: int) -> dict[str, Any]:
    """The tile of rows of `width` elements: about 16 elements a thread, 4 to 16 warps."""
    block_d = 1 << (width - 1).bit_length()
    block_rows = max(1, TILE // block_d)
    num_warps = min(16, max(4, block_d * block_rows // 512))
    return {"BLOCK_D": block_d, "BLOCK_ROWS": block_rows, "num_warps": num_warps}


def part_tile(width: int) -> dict[str, Any]:
    """The tile of programs that take parts of a row: rows of any width share a few binaries."""
    return row_tile(min(width, WIDEST_PART))


def part_grid(rows: int, width: int, tile: dict[str, Any]) -> tuple[int, int]:
    """Programs over the rows and over the parts of a row."""
    return -(-rows // tile["BLOCK_ROWS"]), -(-width // tile["BLOCK_D"])


def dense_rows(tensor: Tensor) -> Tensor:
    """`[..., D]` as `[rows, D]` with dense rows; copies only what no single row stride describes."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
