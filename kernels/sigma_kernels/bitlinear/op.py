"""The ternary product y = (xq Wq^T) * scale_x * scale_w, and its unquantised twin.

Why exact: codes are integers of at most 127 times integers of at most 1, so every partial sum is an integer below
127 K, and fp32 holds integers below 2^24. For K <= 132,104 a bf16 or fp32 product with fp32 accumulation therefore
equals the int8 product with int32 accumulation bit for bit, on the CPU and on tensor cores.

What is saved for the backward pass: `x` itself, as it came in, and nothing else that grows with the tokens. The
codes of `x` come back bit for bit by quantising again. int8 codes would be smaller than `x`, but each product that
reads `x` would save its own; `x` is one tensor for all of them, and where it is the output of an INSTANT region
(every norm in front of a ternary product is one) it is not kept at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigma_kernels import counters, dispatch
from sigma_kernels.bitlinear.reference import (
    quantize_activation_reference,
    quantize_weight_reference,
    scale_rows_reference,
)
from sigma_kernels.row_tiles import FLOATS, WIDEST


def quantize_weight(w: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary codes (int8) and scale (fp32) of a matrix `[N, K]` or of each matrix of a stack `[E, N, K]`.

    Raises ValueError for any other number of dimensions.
    """
    if w.dim() not in (2, 3):
        raise ValueError(f"quantize_weight takes a matrix or a stack of matrices, not a shape of {list(w.shape)}")
    counters.add("bitlinear.quantize_weight")
    return quantize_weight_reference(w)


def quantize_activation(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Codes and fp32 scale of every row of `x` (`[..., K]` -> `[..., K]`, `[...]`); Triton on CUDA, else the reference.

    The codes are integers of at most 127 in `dtype`, so that a product can read them as they are. The bits are those
    of the reference. fp64 has fp64 scales, and no kernel.
    """
    limit = None
    if x.dtype not in FLOATS or dtype not in (*FLOATS, torch.int8):
        limit = f"the kernel does not turn {x.dtype} into codes in {dtype}"
    elif not 1 <= x.shape[-1] <= WIDEST:
        limit = f"the kernel takes rows of 1 to {WIDEST} elements"
    if dispatch.use_triton("quantize_rows", x, limit=limit):
        from sigma_kernels.bitlinear.quantize_kernel import launch_quantize_rows

        return launch_quantize_rows(x, dtype)
    return quantize_activation_reference(x, dtype)


def scale_rows(a_MN: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """`a_MN` times the `factor` of each row (`[M]`, or a scalar for all), rounded once to `dtype`; no gradient.

    Triton on CUDA, else the reference, with the same bits.
    """
    limit = None
    if a_MN.dtype not in FLOATS or dtype not in FLOATS or factor.dtype != torch.float32:
        limit = f"the kernel does not turn {a_MN.dtype} times {factor.dtype} into {dtype}"
    if dispatch.use_triton("scale_rows", a_MN, factor, limit=limit):
        from sigma_kernels.bitlinear.scale_kernel import launch_scale_rows

        return launch_scale_rows(a_MN, factor, dtype)
    return scale_rows_reference(a_MN, factor, dtype)


def bit_linear(x: Tensor, weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """`x` `[..., K]` times the ternary `codes` `[N, K]` of `weight`: `[..., N]`, in the autocast dtype or that of `x`.

    Straight-through gradients: dX = dY (scale codes), dW = dY^T (scale_x xq). Raises ValueError when shapes differ.
    """
    if codes.shape != weight.shape or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"bit_linear: x {list(x.shape)}, weight {list(weight.shape)} and codes {list(codes.shape)} do not fit"
        )
    return BitLinearFn.apply(x, weight, codes, scale, compute_dtype(x))


def linear(x: Tensor, weight: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """`x` `[..., K]` times `weight` `[N, K]`, computed and returned in `dtype` (default: autocast, else that of `x`).

    Differs from `torch.nn.functional.linear` under autocast: it saves `x` as it came in, not a converted copy.
    """
    return LinearFn.apply(x, weight, dtype or compute_dtype(x))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that autocast asks for on the device of `x`, or the dtype of `x`. fp64 is never lowered."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def matmul(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a @ b` of two matrices rounded to `dtype`, accumulated and returned in fp32 (fp64 for fp64)."""
    a, b = a.to(dtype), b.to(dtype)
    if dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def no_autocast(x: Tensor) -> torch.autocast:
    """Inside, every product has the dtype that the code says."""
    return torch.autocast(x.device.type, enabled=False)


class BitLinearFn(torch.autograd.Function):
    """The ternary product with straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, codes, scale)
        ctx.dtype, ctx.weight_dtype = dtype, weight.dtype
        counters.add("bitlinear.forward")
        with no_autocast(x):
            codes_MK, scale_M = quantize_activation(x.reshape(-1, x.shape[-1]), dtype)
            y_MN = scale_rows(matmul(codes_MK, codes.mT, dtype), scale_M * scale, dtype)
        return y_MN.view(*x.shape[:-1], codes.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, codes, scale = ctx.saved_tensors
        counters.add("bitlinear.backward")
        grad_x = grad_weight = None
        grad_MN = grad.reshape(-1, grad.shape[-1])
        with no_autocast(x):
            if ctx.needs_input_grad[0]:
                grad_x = scale_rows(matmul(grad_MN, codes, ctx.dtype), scale, x.dtype).view_as(x)
            if ctx.needs_input_grad[1]:
                # the row scale goes to the gradient, so that the codes enter the product exactly
                codes_MK, scale_M = quantize_activation(x.reshape(-1, x.shape[-1]), ctx.dtype)
                left_MN = scale_rows(grad_MN, scale_M, ctx.dtype)
                grad_weight = matmul(left_MN.mT, codes_MK, ctx.dtype).to(ctx.weight_dtype)
        return grad_x, grad_weight, None, None, None


class LinearFn(torch.autograd.Function):
    """The plain product, saving its two operands as they came in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        with no_autocast(x):
            return matmul(x.reshape(-1, x.shape[-1]), weight.mT, dtype).to(dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        grad_MN = grad.reshape(-1, grad.shape[-1])
        with no_autocast(x):
            if ctx.needs_input_grad[0]:
                grad_x = matmul(grad_MN, weight, ctx.dtype).to(x.dtype).view_as(x)
            if ctx.needs_input_grad[1]:
                grad_weight = matmul(grad_MN.mT, x.reshape(-1, x.shape[-1]), ctx.dtype).to(weight.dtype)
        return grad_x, grad_weight, None
