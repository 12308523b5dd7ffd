"""Codes of the rows of an activation, in the dtype of the product: the kernel against the eager reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from floors import Work
from registry import Case, benchmark
from torch import Tensor

from sigma_kernels.bitlinear.op import quantize_activation
from sigma_kernels.bitlinear.reference import quantize_activation_reference

# Tokens of a training step times the widths of layers.
SHAPES = [(65536, 256), (65536, 768), (65536, 2048)]
DTYPE = torch.bfloat16


PROVIDERS: dict[str, Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]] = {
    "sigma": quantize_activation,
    "torch": quantize_activation_reference,
}


@benchmark("quantize_rows")
def cases() -> Iterator[Case]:
    """bf16 in and out: reads x, writes its codes and one scale for each row."""
    for rows, width in SHAPES:
        generator = torch.Generator("cuda").manual_seed(0)
        x = torch.randn(rows, width, device="cuda", dtype=DTYPE, generator=generator)
        least = 2 * x.numel() * x.element_size() + 4 * rows
        for name, quantize in PROVIDERS.items():
            yield Case(
                shape=f"{rows}x{width}",
                dtype="bfloat16",
                provider=name,
                direction="forward",
                bytes=least,
                work=(Work(least, 0),),
                run=partial(quantize, x, DTYPE),
            )
