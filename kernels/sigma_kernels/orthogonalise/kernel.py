"""The symmetric products of an orthogonalisation in Triton: X X^T, R S, a I + b R + c R^2: one half, mirrored.

Two kernels compute them: `pointers.py`, and `descriptors.py` where the copy engine moves the tiles, which is faster
on sm_90 by a quarter to a third. No autotuning: sizes follow from the shape and the device.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from sigma_kernels import counters, tuned
from sigma_kernels.architecture import WARPGROUP_PRODUCTS, architecture
from sigma_kernels.orthogonalise import descriptors, pointers
from sigma_kernels.orthogonalise.normalise import normalised_wide_triton
from sigma_kernels.orthogonalise.reference import TorchProducts, Triple
from sigma_kernels.pipelining import stages

LARGEST_BOX = 256  # rows that a tensor descriptor moves at a time
SMALL = 256  # rows of a matrix that tiles of 128 would cover with too few


class TritonProducts(TorchProducts):
    """Symmetric products of bf16 or fp16 batches; results in the type of the input.

    Q X stays with the vendor's library: no half of it can be saved.
    """

    def normalised_wide(self, x_KMN: Tensor, dtype: torch.dtype) -> Tensor:
        """Each matrix over a little more than its norm, turned where it is tall."""
        return normalised_wide_triton(x_KMN, dtype)

    def gram(self, x_KMN: Tensor) -> Tensor:
        """X X^T."""
        return _launch(x_KMN, x_KMN, None)

    def symmetric(self, left_KMM: Tensor, right_KMM: Tensor) -> Tensor:
        """The product of two symmetric matrices that commute."""
        return _launch(left_KMM, right_KMM, None)

    def quadratic(self, gram_KMM: Tensor, triple: Triple) -> Tensor:
        """a I + b R + c R^2."""
        return _launch(gram_KMM, gram_KMM, triple)

    def apply(self, x_KMN: Tensor, triple: Triple, out: Tensor | None = None) -> Tensor:
        """(a I + b R + c R^2) X: a in the matrix, which is rounded once, saves a pass over X."""
        return self.multiply(self.quadratic(self.gram(x_KMN), triple), x_KMN, out)


def _launch(x_KMN: Tensor, y_KMN: Tensor, triple: Triple | None) -> Tensor:
    x, y = (t if t.stride(2) == 1 else t.contiguous() for t in (x_KMN, y_KMN))
    count, rows, _ = x.shape
    out = torch.empty((count, rows, rows), dtype=x.dtype, device=x.device)
    name = architecture(x.device)
    tile = tile_of(rows, name)
    if tile["DESCRIPTORS"] and not descriptors.describable(x, y, out):
        tile = tile_by_pointers(rows, name)
    tile["num_stages"] = stages(tile["num_stages"])
    by, launch = ("descriptors", descriptors.launch) if tile.pop("DESCRIPTORS") else ("pointers", pointers.launch)
    counters.add("orthogonalise.symmetric_products")
    counters.add(f"orthogonalise.by_{by}")
    with torch.cuda.device_of(x):
        launch(x, y, out, triple, tile)
    return out


def tile_of(rows: int, name: str) -> dict[str, Any]:
    """Compile-time arguments on an architecture: what was tuned on this machine, else `built_in_tile`.

    `DESCRIPTORS` says by which kernel.
    """
    found = tuned.settings("orthogonalise", tile_key(rows, name))
    return built_in_tile(rows, name) if found is None else dict(found["tile"])


def built_in_tile(rows: int, name: str) -> dict[str, Any]:
    """By descriptors where that was timed, and is faster: two programs of four warps share a processor of sm_90."""
    if name == "sm_90" and rows > SMALL:
        return {"BLOCK": 128, "RATIO": 1, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3, "DESCRIPTORS": True}
    return tile_by_pointers(rows, name)


def tile_by_pointers(rows: int, name: str) -> dict[str, Any]:
    """Large tiles where the matrix has several, within 99 KiB of shared memory."""
    if rows <= SMALL:
        return _by_pointers(64, 64, 4, 3)
    return _by_pointers(128, 64, 8, 4) if name in WARPGROUP_PRODUCTS else _by_pointers(128, 32, 8, 3)


def _by_pointers(block: int, inner: int, warps: int, count: int) -> dict[str, Any]:
    return {"BLOCK": block, "BLOCK_K": inner, "num_warps": warps, "num_stages": count, "DESCRIPTORS": False}


def check_settings(settings: tuned.Settings) -> None:
    """Raises ValueError for what is not `{"tile": ...}` as of `tile_of`, or no kernel can be launched with."""
    tile = settings["tile"] if settings.keys() == {"tile"} else None
    tile = tile if isinstance(tile, dict) else {}
    bounds = {"BLOCK": (16, 256), "BLOCK_K": (16, 256), "num_warps": (1, 16)}
    described = tile.get("DESCRIPTORS")
    bounds |= {"RATIO": (1, 2)} if described is True else {}
    whole = tile.keys() == bounds.keys() | {"num_stages", "DESCRIPTORS"} and type(described) is bool
    if not whole or not all(tuned.power_of_two(tile[name], *bound) for name, bound in bounds.items()):
        raise ValueError(f"{str(settings)[:80]} is no tile of a symmetric product")
    if tile["BLOCK"] * tile.get("RATIO", 1) > LARGEST_BOX:
        raise ValueError(f"BLOCK * RATIO is above {LARGEST_BOX}: that is no tile of a symmetric product")
    if type(tile["num_stages"]) is not int or not 1 <= tile["num_stages"] <= 8:
        raise ValueError(f"num_stages = {str(tile['num_stages'])[:40]} is none of a pipeline")


tuned.check_rows("orthogonalise", check_settings)


@cache
def tile_key(rows: int, name: str) -> str:
    """What the tiles of a symmetric product follow from: the architecture, and its rows up to a power of two."""
    return f"{name} {1 << max(6, (rows - 1).bit_length())} rows"
