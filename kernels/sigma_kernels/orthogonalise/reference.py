"""Orthogonalisation of matrices in plain PyTorch: the specification of the op, and what runs where Triton cannot.

Each iteration is an odd polynomial p(s) = a s + b s^3 + c s^5 of the singular values. Composed they bring (0, 1] near
1, so that U S V^T becomes nearly U V^T, the polar factor.

`newton_schulz_reference` repeats one polynomial (K. Jordan, kellerjordan.github.io/posts/muon), operation for operation
as torch.optim.Muon does. Polar Express (arXiv:2505.16932) has another one for each iteration, the best for the range
that the ones before leave. It has two forms, with X `[m, n]` and m <= n: the direct one multiplies X in every
iteration; the Gram one iterates on X X^T `[m, m]`, which is cheaper for long matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Triple = tuple[float, float, float]

NEWTON_SCHULZ: Triple = (3.4445, -4.7750, 2.0315)
# Iterations 1 to 5 for singular values from 1e-3, made safe for half precision (safety 2e-2, cushion 2); later ones
# repeat the last. As the public training codes print them (modded-nanogpt, nanochat, dion).
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
EPS = 1e-7
SAFETY, SAFETY_EPS = 1.02, 1e-12
# In half precision the Gram matrix drifts and gets negative eigenvalues, so it is formed anew from X now and then.
RESTART_AFTER = 2


def polynomials(iterations: int) -> tuple[Triple, ...]:
    """The polynomials of so many iterations of Polar Express."""
    return tuple(POLAR_EXPRESS[min(i, len(POLAR_EXPRESS) - 1)] for i in range(iterations))


def newton_schulz_reference(x_KMN: Tensor, iterations: int = 5) -> Tensor:
    """torch.optim.Muon's iteration in bf16 on each matrix; a single matrix gives its bits. Returns bf16."""
    a, b, c = NEWTON_SCHULZ
    single = x_KMN.shape[0] == 1
    x = x_KMN[0].bfloat16() if single else x_KMN.bfloat16()
    tall = x.size(-2) > x.size(-1)
    multiply_add = torch.addmm if single else torch.baddbmm
    if tall:
        x = x.mT
    # The Frobenius norm bounds the spectral one, and the iteration converges from at most 1.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(iterations):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if tall else x
    return x[None] if single else x


def normalised(x_KMN: Tensor, dtype: torch.dtype) -> Tensor:
    """Each matrix divided by a little more than its Frobenius norm, in `dtype`; a zero matrix stays zero."""
    norm = torch.linalg.vector_norm(x_KMN, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    return (x_KMN * (1 / (norm * SAFETY + SAFETY_EPS))).to(dtype)


class Products(Protocol):
    """What both forms are made of; here in PyTorch, in `kernel.py` with symmetric products in Triton.

    `out` is where a result goes that is already allocated.
    """

    def normalised_wide(self, x_KMN: Tensor, dtype: torch.dtype) -> Tensor:
        """`normalised`, turned where it is tall: contiguous `[K, s, l]` with s <= l."""
        ...

    def gram(self, x_KMN: Tensor) -> Tensor:
        """X X^T."""
        ...

    def quadratic(self, gram_KMM: Tensor, triple: Triple) -> Tensor:
        """a I + b R + c R^2."""
        ...

    def symmetric(self, left_KMM: Tensor, right_KMM: Tensor) -> Tensor:
        """The product of two symmetric matrices that commute, which is symmetric."""
        ...

    def apply(self, x_KMN: Tensor, triple: Triple, out: Tensor | None = None) -> Tensor:
        """(a I + b R + c R^2) X with R = X X^T."""
        ...

    def multiply(self, left_KMM: Tensor, x_KMN: Tensor, out: Tensor | None = None) -> Tensor:
        """Q X."""
        ...


class TorchProducts:
    """Batched products that compute both halves."""

    def normalised_wide(self, x_KMN: Tensor, dtype: torch.dtype) -> Tensor:
        """`normalised`, turned where it is tall."""
        x = normalised(x_KMN, dtype)
        return (x.mT if x.shape[1] > x.shape[2] else x).contiguous()

    def gram(self, x_KMN: Tensor) -> Tensor:
        """X X^T."""
        return x_KMN @ x_KMN.mT

    def quadratic(self, gram_KMM: Tensor, triple: Triple) -> Tensor:
        """a I + b R + c R^2."""
        a, b, c = triple
        out = torch.baddbmm(gram_KMM, gram_KMM, gram_KMM, beta=b, alpha=c)
        out.diagonal(dim1=-2, dim2=-1).add_(a)
        return out

    def symmetric(self, left_KMM: Tensor, right_KMM: Tensor) -> Tensor:
        """The product of two symmetric matrices that commute."""
        return left_KMM @ right_KMM

    def apply(self, x_KMN: Tensor, triple: Triple, out: Tensor | None = None) -> Tensor:
        """a X + (b R + c R^2) X: a is kept out of the matrix, where it would be rounded to half precision twice."""
        a, b, c = triple
        gram = self.gram(x_KMN)
        return torch.baddbmm(x_KMN, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x_KMN, beta=a, out=out)

    def multiply(self, left_KMM: Tensor, x_KMN: Tensor, out: Tensor | None = None) -> Tensor:
        """Q X."""
        return torch.bmm(left_KMM, x_KMN, out=out)


class Polar(NamedTuple):
    """`polar = transform @ (X / norm)`; `transform_KMM` is there where it was asked for."""

    polar_KMN: Tensor
    transform_KMM: Tensor | None


def direct_form(
    x_KMN: Tensor, triples: Sequence[Triple], products: Products, *, out_KMN: Tensor | None = None
) -> Polar:
    """X <- (a I + b R + c R^2) X with R = X X^T, for each polynomial; X wide, its norm at most 1."""
    x = x_KMN
    for i, triple in enumerate(triples):
        x = products.apply(x, triple, out_KMN if i + 1 == len(triples) else None)
    return Polar(x, None)


def gram_form(
    x_KMN: Tensor, triples: Sequence[Triple], products: Products, *, transform: bool = False,
    out_KMN: Tensor | None = None,
) -> Polar:  # fmt: skip
    """Q X with the product Q of all polynomials, made from R = X X^T alone; X wide, its norm at most 1."""
    x, whole = x_KMN, None
    parts = [part for part in (triples[:RESTART_AFTER], triples[RESTART_AFTER:]) if part]
    for i, part in enumerate(parts):
        q = _product_of_polynomials(products.gram(x), part, products)
        x = products.multiply(q, x, out_KMN if i + 1 == len(parts) else None)
        if transform:
            whole = q if whole is None else products.symmetric(q, whole)
    return Polar(x, whole)


def _product_of_polynomials(gram: Tensor, triples: Sequence[Triple], products: Products) -> Tensor:
    whole = None
    for i, triple in enumerate(triples):
        z = products.quadratic(gram, triple)
        whole = z if whole is None else products.symmetric(z, whole)  # polynomials of one matrix commute
        if i + 1 < len(triples):
            gram = products.symmetric(products.symmetric(z, gram), z)
    assert whole is not None
    return whole
