"""The symmetric products of an orthogonalisation as something that `sigma tune` can time."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from sigma_kernels.architecture import COPY_ENGINE, architecture
from sigma_kernels.orthogonalise.descriptors import describable
from sigma_kernels.orthogonalise.kernel import TritonProducts, tile_key, tile_of
from sigma_kernels.orthogonalise.reference import polynomials
from sigma_kernels.tuning import Tunable

BY_POINTERS = [
    {"BLOCK": block, "BLOCK_K": inner, "num_warps": warps, "num_stages": stages, "DESCRIPTORS": False}
    for block, inner, warps, stages in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4, 5))
]
BY_DESCRIPTORS = [
    {"BLOCK": block, "BLOCK_K": inner, "num_warps": warps, "num_stages": stages, "DESCRIPTORS": True, "RATIO": ratio}
    for block, ratio, inner, warps, stages in product((64, 128), (1, 2), (64, 128), (4, 8), (2, 3, 4))
]


def orthogonalise_tunable(count: int, rows: int, columns: int, device: torch.device) -> Tunable:
    """One polynomial's symmetric products on a batch of fp16 matrices: the Gram matrix, and a I + b R + c R^2."""
    generator = torch.Generator(device).manual_seed(0)
    x_KMN = torch.randn(count, rows, columns, generator=generator, device=device).to(torch.float16) * columns**-0.5
    products, triple, name = TritonProducts(), polynomials(1)[0], architecture(device)

    def call() -> list[Tensor]:
        gram_KMM = products.gram(x_KMN)
        return [gram_KMM, products.quadratic(gram_KMM, triple)]

    tiles = BY_DESCRIPTORS + BY_POINTERS if name in COPY_ENGINE and describable(x_KMN) else BY_POINTERS
    return Tunable("orthogonalise", tile_key(rows, name), {"tile": tile_of(rows, name)}, {"tile": tiles}, call)
