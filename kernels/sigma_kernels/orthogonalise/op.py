"""The public orthogonalisation: checks, chooses the form by shape, asks dispatch, counts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sigma_kernels import counters, dispatch
from sigma_kernels.orthogonalise.reference import (
    Products,
    TorchProducts,
    direct_form,
    gram_form,
    newton_schulz_reference,
    polynomials,
)

Form = Literal["auto", "direct", "gram"]
Polynomial = Literal["polar_express", "newton_schulz"]

# Operations of the Gram form in units of the direct one's: 0.67 / 0.67 for squares, 0.52 / 0.70 at 2 : 1. It needs more
# launches, so it has to gain.
GRAM_FROM_ASPECT = 1.5
GRAM_FROM_ROWS = 128
# Elements that are worked on together: enough to fill a GPU several times over, few enough for little extra memory.
CHUNK = 1 << 26


@torch.no_grad()
def orthogonalise(
    x_KMN: Tensor, *, polynomial: Polynomial = "polar_express", iterations: int = 5, form: Form = "auto"
) -> Tensor:
    """The singular values of each matrix brought near 1; zero matrices stay zero. Not differentiable.

    `polar_express` works in fp16 on CUDA, which after the division by the norm is ten times as exact as bf16; on the
    CPU, where fp16 is slow, in bf16. `auto` takes the Gram form for long matrices on CUDA. `newton_schulz` is
    torch.optim.Muon's own, in bf16 and without a kernel. Counts `orthogonalise.matrices`.

    Args:
        x_KMN: `[K, m, n]` of any float type, any scale that its norm can hold in fp32.
        iterations: 1 or more; Polar Express repeats its fifth polynomial.

    Returns:
        `[K, m, n]` in bf16 or fp16.

    Raises:
        ValueError: x is no batch of matrices, or iterations below 1.
    """
    _check(x_KMN, iterations)
    counters.add("orthogonalise.matrices", x_KMN.shape[0])
    if polynomial == "newton_schulz":
        return newton_schulz_reference(x_KMN, iterations)
    return _polars(x_KMN, iterations, form)[0]


@torch.no_grad()
def orthogonalise_with_transform(x_KMN: Tensor, *, iterations: int = 5) -> tuple[Tensor, Tensor]:
    """(polar factors, symmetric fp16 or fp32 `[K, s, s]` with s = min(m, n)): what brought them there.

    `transform @ x` for wide matrices, `x @ transform` for tall ones, has the direction of the polar factor; its scale
    is left open. Polar Express in the Gram form; fp32 on the CPU, where half precision is slow.
    """
    _check(x_KMN, iterations)
    counters.add("orthogonalise.matrices", x_KMN.shape[0])
    polar_KMN, transforms = _polars(x_KMN, iterations, "gram", transform=True)
    return polar_KMN, torch.cat(transforms)


def _polars(x_KMN: Tensor, iterations: int, form: Form, *, transform: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The polar factors of all matrices, part by part into one tensor, and the transforms of each part."""
    count, (rows, columns) = x_KMN.shape[0], sorted(x_KMN.shape[1:])
    if form == "auto":
        long = columns >= GRAM_FROM_ASPECT * rows and rows >= GRAM_FROM_ROWS
        form = "gram" if long and x_KMN.is_cuda else "direct"
    host = torch.bfloat16 if form == "direct" else torch.float32
    dtype = torch.float16 if x_KMN.is_cuda or dispatch.interpreting() else host
    out = torch.empty((count, rows, columns), dtype=dtype, device=x_KMN.device)
    triples, transforms, done = polynomials(iterations), [], 0
    for part in _chunks(x_KMN):
        products, out_KMN = _products(part), out[done : done + len(part)]
        x = products.normalised_wide(part, dtype)
        if form == "direct":
            direct_form(x, triples, products, out_KMN=out_KMN)
        else:
            found = gram_form(x, triples, products, transform=transform, out_KMN=out_KMN).transform_KMM
            transforms += [] if found is None else [found]
        done += len(part)
    return out.mT if x_KMN.shape[1] > x_KMN.shape[2] else out, transforms


def _products(x: Tensor) -> Products:
    if dispatch.use_triton("orthogonalise", x):
        from sigma_kernels.orthogonalise.kernel import TritonProducts

        return TritonProducts()
    return TorchProducts()


def _chunks(x_KMN: Tensor) -> tuple[Tensor, ...]:
    """Parts of nearly the same size (a small one at the end would leave a GPU empty) within CHUNK, or one matrix."""
    most = max(1, CHUNK // (x_KMN.shape[1] * x_KMN.shape[2]))
    return x_KMN.tensor_split(-(-x_KMN.shape[0] // most))


def _check(x_KMN: Tensor, iterations: int) -> None:
    if x_KMN.ndim != 3 or 0 in x_KMN.shape:
        raise ValueError(f"orthogonalise: x must be a batch of matrices, it is {tuple(x_KMN.shape)}")
    if iterations < 1:
        raise ValueError(f"orthogonalise: iterations must be 1 or more, it is {iterations}")
