"""What the tests of the row kernels share: rows with every special value, steps of the products, equality of bits."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels.bitlinear.op import bit_linear, quantize_activation, quantize_weight, scale_rows
from sigma_kernels.bitlinear.reference import EPS, quantize_activation_reference, scale_rows_reference
from sigma_kernels.experts.op import combine, expert_linear, sort_by_expert
from sigma_kernels.experts.reference import row_dots_reference, sum_choices_reference
from sigma_kernels.experts.rows import row_dots, sum_choices
from tests.kernels.tolerance import assert_close

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same values on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def small_integers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Below 32: fp32 holds every sum of 16,384 of their products exactly, in any order."""
    return torch.randint(-31, 32, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def shuffled(rows: int) -> Tensor:
    """A permutation, as the inverse of a sort is."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(5))


def special_rows(width: int, dtype: torch.dtype) -> Tensor:
    """Rows of ties, zeros, magnitudes around and below EPS, NaN, and infinities; normal between them.

    In the last row the second element is 63.5 after the product with the scale is rounded, and less before.
    """
    x = normal(9, width)
    ties = torch.arange(width) - width // 2 + 0.5
    x[0] = ties.remainder(120) * (-1.0) ** torch.arange(width)
    x[0, -1] = 127  # the scale is 1
    x[2] = 0
    x[3] *= EPS / 100
    x[4] *= EPS
    x[5, width // 2] = float("nan")
    x[6, 0] = float("inf")
    x[7, -1] = -float("inf")
    x[7, 0] = float("nan")
    x[8] = x[8].clamp(-1, 1)
    x[8, :2] = torch.tensor([1.0078125, 0.50390625])
    return x.to(dtype)


def inside_wider_rows(x: Tensor) -> Tensor:
    """The same values as the middle columns of a matrix of NaN."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 7), float("nan"), dtype=x.dtype, device=x.device)
    wide[..., 3:-4] = x
    return wide[..., 3:-4]


def same_bits(got: Tensor, want: Tensor) -> bool:
    """Equal in dtype, shape and every bit but those of a NaN."""
    if got.dtype != want.dtype or got.shape != want.shape or not torch.equal(got.isnan(), want.isnan()):
        return False
    bits = INTEGERS[got.element_size()]
    return torch.equal(got.contiguous().view(bits)[~got.isnan()], want.contiguous().view(bits)[~want.isnan()])


def assert_codes(x: Tensor, dtype: torch.dtype) -> None:
    """Against the reference, where `x` is and on the CPU."""
    results = quantize_activation(x, dtype)
    for there in (x, x.cpu()):
        for got, want in zip(results, quantize_activation_reference(there, dtype), strict=True):
            assert same_bits(got.to(there.device), want)


def assert_scaled(rows: Tensor, factor: Tensor, dtype: torch.dtype) -> None:
    """Against the reference, where `rows` are and on the CPU."""
    got = scale_rows(rows, factor, dtype)
    assert same_bits(got, scale_rows_reference(rows, factor, dtype))
    assert same_bits(got.cpu(), scale_rows_reference(rows.cpu(), factor.cpu(), dtype))


def assert_exact_dots(a: Tensor, b: Tensor) -> None:
    """Of integers, against the reference, where they are and on the CPU."""
    got = row_dots(a, b)
    assert same_bits(got, row_dots_reference(a, b))
    assert same_bits(got.cpu(), row_dots_reference(a.cpu(), b.cpu()))


def assert_dots(a: Tensor, b: Tensor) -> None:
    """Against fp64, in fp32."""
    got = row_dots(a, b)
    assert got.dtype == torch.float32
    assert_close("dots", got, (a.double() * b.double()).sum(-1))


def assert_summed(y: Tensor, inverse: Tensor, top_k: int, factor: Tensor | None, dtype: torch.dtype) -> None:
    """Against the reference, where the rows are and on the CPU."""
    got = sum_choices(y, inverse, top_k, factor, dtype)
    assert same_bits(got, sum_choices_reference(y, inverse, top_k, factor, dtype))
    on_cpu = sum_choices_reference(y.cpu(), inverse.cpu(), top_k, None if factor is None else factor.cpu(), dtype)
    assert same_bits(got.cpu(), on_cpu)


def product_step(x: Tensor, dtype: torch.dtype, out_features: int = 24) -> list[Tensor]:
    """Output of a ternary product computed in `dtype`, and the gradients of x and of the weight."""
    x, weight = x.detach().requires_grad_(), normal(out_features, x.shape[-1], seed=1).to(x.device).requires_grad_()
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        y = bit_linear(x, weight, *quantize_weight(weight.detach()))
    y.backward(normal(*y.shape, seed=2).to(y))
    return [y.detach(), *(leaf.grad for leaf in (x, weight) if leaf.grad is not None)]


def expert_step(
    x: Tensor, dtype: torch.dtype, *, ternary: bool, gated: bool, gather: bool = True, out_features: int = 24
) -> list[Tensor]:
    """Two of four experts for each token: the output, and the gradients of x, of the weights and of the gates.

    `x` has a row for each token, or with `gather` off two, already sorted.
    """
    tokens, width = x.shape[0] // (1 if gather else 2), x.shape[1]
    choices = torch.rand(tokens, 4, generator=torch.Generator().manual_seed(3)).topk(2).indices.to(x.device)
    rows = sort_by_expert(choices, 4)
    x, weight = x.detach().requires_grad_(), normal(4, out_features, width, seed=1).to(x.device).requires_grad_()
    gate_M = normal(2 * tokens, seed=4).abs().to(x.device).requires_grad_()
    codes, scale = quantize_weight(weight.detach()) if ternary else (None, None)
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        gate = gate_M if gated else None
        y_MN = expert_linear(x, weight, rows, gather=gather, codes_ENK=codes, scale_E=scale, gate_M=gate)
        y = combine(y_MN, rows)
    assert y.dtype == y_MN.dtype
    y.backward(normal(*y.shape, seed=2).to(y))
    return [y.detach(), *(leaf.grad for leaf in (x, weight, gate_M) if leaf.grad is not None)]


def assert_same_step(got: list[Tensor], want: list[Tensor], *, gated: bool) -> None:
    """Two results of `expert_step` with the same bits, but for the gradient of the gates, whose sums have no order."""
    assert len(got) == len(want) == 3 + gated
    assert all(same_bits(one, other) for one, other in zip(got[:3], want[:3], strict=True))
    if gated:
        assert_close("gates", got[3], want[3].double())
