"""Passes over the rows of experts: dot products of rows, and sums of a token's rows; kernel against eager reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from floors import Work
from registry import Case, benchmark
from torch import Tensor

from sigma_kernels.experts.reference import row_dots_reference, sum_choices_reference
from sigma_kernels.experts.rows import row_dots, sum_choices

# Rows of a training step with two experts for each token, times the widths of layers.
SHAPES = [(131072, 256), (131072, 768)]
TOP_K = 2
DTYPE = torch.bfloat16

PROVIDERS = {"sigma": (row_dots, sum_choices), "eager": (row_dots_reference, sum_choices_reference)}


def _normal(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype, generator=torch.Generator("cuda").manual_seed(0))


def _case(shape: str, provider: str, least: int, run: Callable[[], Tensor]) -> Case:
    return Case(shape, "bfloat16", provider, "forward", least, run, work=(Work(least, 0),))


@benchmark("expert_rows")
def cases() -> Iterator[Case]:
    """Dots read two matrices; sums read rows, where each stands and its factor, and write a row for each token."""
    for rows, width in SHAPES:
        y, other, factor = _normal(rows, width), _normal(rows, width), _normal(rows, dtype=torch.float32)
        inverse = torch.randperm(rows, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
        size = y.numel() * y.element_size()
        for name, (dots, sums) in PROVIDERS.items():
            yield _case(f"{rows}x{width} dots", name, 2 * size + 4 * rows, partial(dots, y, other))
            least = size + size // TOP_K + (8 + 4) * rows
            yield _case(f"{rows}x{width} sums", name, least, partial(sums, y, inverse, TOP_K, factor, DTYPE))
