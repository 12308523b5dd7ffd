"""The parameters of two presets, so that a benchmark needs no model: 108 M and 1.46 G.

`tests/kernels/test_bench_optim.py` compares them with what the presets build.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

Role = str | tuple[str, tuple[int, ...]]

# (role, shape, how many)
SHAPES: dict[str, list[tuple[Role, tuple[int, ...], int]]] = {
    "small": [
        ("experts", (8, 512, 512), 12), (("experts", (512, 512)), (8, 1024, 512), 12),
        (("fused", (1024, 1024, 256, 256)), (2560, 512), 9), (("fused", (512, 512)), (1024, 512), 12),
        ("hidden", (128, 512), 3), ("hidden", (256, 128), 6), ("hidden", (512, 1024), 9), ("hidden", (512, 256), 3),
        ("hidden", (512, 512), 15), ("embedding", (8192, 512), 1), ("router", (4, 512), 3), ("router", (64, 512), 9),
        ("router", (8, 512), 12), ("vector", (1024,), 9), ("vector", (128,), 3), ("vector", (16, 4, 64), 45),
        ("vector", (16, 64), 9), ("vector", (16,), 18), ("vector", (256,), 3), ("vector", (512,), 49),
        ("vector", (64,), 18),
    ],
    "large": [
        ("experts", (8, 1536, 1152), 24), (("experts", (1152, 1152)), (8, 2304, 1536), 24),
        (("fused", (1152, 1152)), (2304, 1536), 24), (("fused", (3072, 3072, 256, 256)), (6656, 1536), 18),
        ("hidden", (1536, 1152), 24), ("hidden", (1536, 1536), 6), ("hidden", (1536, 3072), 18),
        ("hidden", (1536, 768), 6), ("hidden", (256, 1536), 6), ("hidden", (768, 256), 12),
        ("embedding", (8192, 1536), 1), ("router", (12, 1536), 6), ("router", (160, 1536), 18),
        ("router", (8, 1536), 24), ("vector", (1152,), 48), ("vector", (1536,), 49), ("vector", (256,), 6),
        ("vector", (3072,), 18), ("vector", (48, 4, 64), 90), ("vector", (48, 64), 18), ("vector", (48,), 36),
        ("vector", (64,), 36), ("vector", (768,), 6),
    ],
}  # fmt: skip
HIDDEN = ("experts", "fused", "hidden")


def named_shapes(preset: str) -> Iterator[tuple[str, Role, tuple[int, ...]]]:
    """Name, role and shape of each parameter."""
    for number, (role, shape, count) in enumerate(SHAPES[preset]):
        for layer in range(count):
            yield f"layers.{layer}.{number}", role, shape


def parameters_of(preset: str) -> int:
    """How many numbers a preset has."""
    return sum(math.prod(shape) * count for _, shape, count in SHAPES[preset])


def matrices_of(preset: str) -> dict[tuple[int, int], int]:
    """Shape -> how many logical matrices of it the matrix optimizer owns."""
    found: dict[tuple[int, int], int] = {}
    for role, shape, count in SHAPES[preset]:
        name, splits = (role, ()) if isinstance(role, str) else role
        if name in HIDDEN:
            experts = shape[0] if len(shape) == 3 else 1
            for rows in splits or (shape[-2],):
                found[rows, shape[-1]] = found.get((rows, shape[-1]), 0) + count * experts
    return found
