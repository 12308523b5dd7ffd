"""The symmetric products of an orthogonalisation in Triton: X X^T, R S, a I + b R + c R^2: one half, mirrored.

A program owns a square tile on or above the diagonal and writes it twice. What a tile below would cost is a program
that returns at once. No autotuning: sizes follow from the shape and the device.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigma_kernels import counters, tuned
from sigma_kernels.architecture import WARPGROUP_PRODUCTS, architecture
from sigma_kernels.orthogonalise.reference import Triple
from sigma_kernels.pipelining import stages


@triton.jit
def _symmetric_product_kernel(
    x_ptr, y_ptr, out_ptr, rows, columns, stride_xb, stride_xm, stride_yb, stride_ym, stride_ob, a, b, c,
    QUADRATIC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = X Y^T, which must be symmetric, or with QUADRATIC a I + b X + c X Y^T."""
    tiles = tl.cdiv(rows, BLOCK)
    k = tl.program_id(0) // (tiles * tiles)  # tiles of one matrix are neighbours: they share its rows in the cache
    i, j = tl.program_id(0) // tiles % tiles, tl.program_id(0) % tiles
    if i > j:
        return
    x_ptr += k.to(tl.int64) * stride_xb
    y_ptr += k.to(tl.int64) * stride_yb
    out_ptr += k.to(tl.int64) * stride_ob
    row = i * BLOCK + tl.arange(0, BLOCK)
    other = j * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK_K)
    left_ptr = x_ptr + row[:, None].to(tl.int64) * stride_xm + inner[None, :]
    right_ptr = y_ptr + other[:, None].to(tl.int64) * stride_ym + inner[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, columns, BLOCK_K):
        here = inner[None, :] < columns - start
        left = tl.load(left_ptr + start, mask=(row[:, None] < rows) & here, other=0.0)
        right = tl.load(right_ptr + start, mask=(other[:, None] < rows) & here, other=0.0)
        total = tl.dot(left, tl.trans(right), total)
    inside = (row[:, None] < rows) & (other[None, :] < rows)
    if QUADRATIC:
        own = tl.load(x_ptr + row[:, None].to(tl.int64) * stride_xm + other[None, :], mask=inside, other=0.0)
        total = c * total + b * own.to(tl.float32)
        total += tl.where(row[:, None] == other[None, :], a, 0.0)
    half = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row[:, None].to(tl.int64) * rows + other[None, :], half, mask=inside)
    if i != j:
        mirrored = (other[:, None] < rows) & (row[None, :] < rows)
        tl.store(out_ptr + other[:, None].to(tl.int64) * rows + row[None, :], tl.trans(half), mask=mirrored)


class TritonProducts:
    """Symmetric products of bf16 or fp16 batches; results in the type of the input."""

    def gram(self, x_KMN: Tensor) -> Tensor:
        """X X^T."""
        return _launch(x_KMN, x_KMN, None)

    def symmetric(self, left_KMM: Tensor, right_KMM: Tensor) -> Tensor:
        """The product of two symmetric matrices that commute."""
        return _launch(left_KMM, right_KMM, None)

    def quadratic(self, gram_KMM: Tensor, triple: Triple) -> Tensor:
        """a I + b R + c R^2."""
        return _launch(gram_KMM, gram_KMM, triple)

    def apply(self, x_KMN: Tensor, triple: Triple) -> Tensor:
        """(a I + b R + c R^2) X: a in the matrix, which is rounded once, saves a pass over X."""
        return self.quadratic(self.gram(x_KMN), triple) @ x_KMN


def _launch(x_KMN: Tensor, y_KMN: Tensor, triple: Triple | None) -> Tensor:
    x, y = (t if t.stride(2) == 1 else t.contiguous() for t in (x_KMN, y_KMN))
    count, rows, columns = x.shape
    out = torch.empty((count, rows, rows), dtype=x.dtype, device=x.device)
    tile = tile_of(rows, architecture(x.device))
    tile["num_stages"] = stages(tile["num_stages"])
    tiles = -(-rows // tile["BLOCK"])
    a, b, c = triple or (0.0, 0.0, 1.0)
    counters.add("orthogonalise.symmetric_products")
    with torch.cuda.device_of(x):
        _symmetric_product_kernel[(count * tiles * tiles,)](
            x, y, out, rows, columns, x.stride(0), x.stride(1), y.stride(0), y.stride(1), out.stride(0), a, b, c,
            QUADRATIC=triple is not None, **tile,
        )  # fmt: skip
    return out


def tile_of(rows: int, name: str) -> dict[str, Any]:
    """Compile-time arguments on an architecture: what was tuned on this machine, else large tiles where the matrix has
    several, within 99 KiB of shared memory.
    """
    if (found := tuned.settings("orthogonalise", tile_key(rows, name))) is not None:
        return dict(found["tile"])
    if rows <= 256:
        return {"BLOCK": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
    wide = name in WARPGROUP_PRODUCTS
    return {"BLOCK": 128, "BLOCK_K": 64 if wide else 32, "num_warps": 8, "num_stages": 4 if wide else 3}


def check_settings(settings: tuned.Settings) -> None:
    """Raises ValueError for what is not `{"tile": ...}` as of `tile_of`, or no kernel can be launched with."""
    tile = settings["tile"] if settings.keys() == {"tile"} else None
    tile = tile if isinstance(tile, dict) else {}
    bounds = {"BLOCK": (16, 256), "BLOCK_K": (16, 256), "num_warps": (1, 16)}
    whole = tile.keys() == bounds.keys() | {"num_stages"}
    if not whole or not all(tuned.power_of_two(tile[name], *bound) for name, bound in bounds.items()):
        raise ValueError(f"{str(settings)[:80]} is no tile of a symmetric product")
    if type(tile["num_stages"]) is not int or not 1 <= tile["num_stages"] <= 8:
        raise ValueError(f"num_stages = {str(tile['num_stages'])[:40]} is none of a pipeline")


tuned.check_rows("orthogonalise", check_settings)


@cache
def tile_key(rows: int, name: str) -> str:
    """What the tiles of a symmetric product follow from: the architecture, and its rows up to a power of two."""
    return f"{name} {1 << max(6, (rows - 1).bit_length())} rows"
