"""Tokens sorted by expert, and their products with stacked expert matrices `[E, N, K]`, ternary or plain.

No token is dropped and nothing is padded: `offsets_E` says where the rows of each expert end. The grouped product of
PyTorch needs no number on the host; the loop needs the E ends there, which is free on the CPU and a wait in each
direction on a device without a fused grouped product.

Saved for the backward pass: the input rows before they are copied to their experts, the gates and the sort. Outputs
are not saved: the gradient of a gate, <dY, y>, equals <dY W, x> by the product's own backward. Factors of rows are
joined and applied where rows are read anyway, so that no pass over [M, K] is made for one of them alone, and none in
fp32 where the product and `x` have 16 bits.
T tokens, M = T * top_k rows, E experts, K input channels, N output channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigma_kernels import counters, dispatch
from sigma_kernels.bitlinear.op import compute_dtype, matmul, no_autocast, quantize_activation, scale_rows
from sigma_kernels.experts.reference import expert_spans
from sigma_kernels.experts.rows import row_dots, sum_choices

_GROUPED_MM_MAJORS = (9, 10)
"""Compute capabilities where `grouped_mm` is one fused kernel; elsewhere it copies the offsets to the host."""


@dataclass(frozen=True)
class ExpertSort:
    """The T * top_k (token, choice) pairs in the order of their experts; within an expert, of the tokens."""

    order_M: Tensor
    """Which pair (token * top_k + choice) stands in each sorted row."""
    inverse_M: Tensor
    """In which sorted row each pair stands."""
    expert_M: Tensor
    """The expert of each sorted row."""
    offsets_E: Tensor
    """int32, where the rows of each expert end."""
    top_k: int

    @property
    def token_M(self) -> Tensor:
        """The token of each sorted row."""
        return self.order_M // self.top_k

    @cached_property
    def ends(self) -> list[int]:
        """`offsets_E` on the host. Waits for the device, once."""
        return self.offsets_E.tolist()


def sort_by_expert(expert_TK: Tensor, n_experts: int) -> ExpertSort:
    """Counting order of the experts `[T, top_k]` that the tokens chose. Stable, hence repeatable; never waits."""
    expert_M, order_M = expert_TK.reshape(-1).sort(stable=True)
    inverse_M = torch.empty_like(order_M)
    inverse_M[order_M] = torch.arange(order_M.numel(), device=order_M.device)
    experts_E = torch.arange(n_experts, device=order_M.device)
    offsets_E = torch.searchsorted(expert_M, experts_E, right=True, out_int32=True)
    return ExpertSort(order_M, inverse_M, expert_M, offsets_E, expert_TK.shape[-1])


def expert_matmul(x_MK: Tensor, w_ENK: Tensor, offsets_E: Tensor) -> Tensor:
    """`y_MN[m] = w_ENK[expert of m] @ x_MK[m]` for rows sorted by expert; differentiable; experts may be empty.

    `offsets_E`: int32 cumulative ends, the last one M.
    """
    row_M = torch.arange(x_MK.shape[0], device=x_MK.device)
    expert_M = torch.searchsorted(offsets_E, row_M.int(), right=True)
    return expert_linear(x_MK, w_ENK, ExpertSort(row_M, row_M, expert_M, offsets_E, top_k=1), gather=False)


def expert_linear(
    x: Tensor,
    weight_ENK: Tensor,
    rows: ExpertSort,
    *,
    gather: bool,
    codes_ENK: Tensor | None = None,
    scale_E: Tensor | None = None,
    gate_M: Tensor | None = None,
) -> Tensor:
    """`y_MN[m] = gate_M[m] * W[expert of m] @ x_m`, in the autocast dtype or that of `x`.

    With `gather`, `x` is `[T, K]` and row m reads the token of m; each token is quantised once, then its codes travel.
    Without, `x` is `[M, K]`, already sorted. With `codes_ENK` and `scale_E` the product is ternary with
    straight-through gradients. Raises ValueError when shapes do not fit.
    """
    expected = rows.order_M.numel() // (rows.top_k if gather else 1)
    if x.dim() != 2 or x.shape[0] != expected or x.shape[1] != weight_ENK.shape[-1]:
        raise ValueError(f"expert_linear: x must be [{expected}, {weight_ENK.shape[-1]}], not {list(x.shape)}")
    return ExpertLinearFn.apply(x, weight_ENK, codes_ENK, scale_E, gate_M, rows, gather, compute_dtype(x))


def combine(y_MD: Tensor, rows: ExpertSort) -> Tensor:
    """The sum over each token's top_k rows, back in the order of the tokens: `[T, D]`."""
    return CombineFn.apply(y_MD, rows.order_M, rows.inverse_M, rows.top_k)


def why_not_grouped_mm(x: Tensor, dtype: torch.dtype, *sizes: int) -> str | None:
    """The reason why `grouped_mm` cannot do this product well, or None."""
    if dispatch.backend() == "reference":
        return "the reference was asked for"
    if not x.is_cuda:
        return "a tensor is not on a CUDA device"
    if torch.cuda.get_device_capability(x.device)[0] not in _GROUPED_MM_MAJORS:
        return "no fused grouped product on this device"
    if dtype != torch.bfloat16:
        return "the grouped product takes bf16 only"
    if any(size % 8 for size in sizes):
        return "a width is not a multiple of 8"
    return None


class _Grouped:
    """The three grouped products of one layer, fused or as a loop, decided once and counted."""

    def __init__(self, x: Tensor, weight_ENK: Tensor, rows: ExpertSort, dtype: torch.dtype) -> None:
        self._rows, self._dtype = rows, dtype
        self._fused = why_not_grouped_mm(x, dtype, *weight_ENK.shape[1:]) is None
        counters.add(f"experts.{'use_grouped_mm' if self._fused else 'use_loop'}")

    def matmul(self, a_MK: Tensor, w_EKN: Tensor) -> Tensor:
        """`a_MK[m] @ w_EKN[expert of m]`."""
        if self._fused:
            return F.grouped_mm(a_MK.to(self._dtype), w_EKN.to(self._dtype), offs=self._rows.offsets_E)
        out = a_MK.new_empty(a_MK.shape[0], w_EKN.shape[-1], dtype=_accumulator(self._dtype))
        for expert, span in expert_spans(self._rows.ends):
            out[span] = matmul(a_MK[span], w_EKN[expert], self._dtype)
        return out

    def outer(self, a_MN: Tensor, b_MK: Tensor, n_experts: int) -> Tensor:
        """`[E, N, K]`: for every expert the sum over its rows of `a_MN[m]` times `b_MK[m]`; zero without rows."""
        if self._fused:
            a_NM = a_MN.to(self._dtype).mT
            return F.grouped_mm(a_NM, b_MK.to(self._dtype), offs=self._rows.offsets_E)
        out = a_MN.new_zeros(n_experts, a_MN.shape[1], b_MK.shape[1], dtype=_accumulator(self._dtype))
        for expert, span in expert_spans(self._rows.ends):
            out[expert] = matmul(a_MN[span].mT, b_MK[span], self._dtype)
        return out


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _operand(
    x: Tensor, rows: ExpertSort, gather: bool, ternary: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The sorted rows `[M, K]` as the product reads them, and their scale `[M]`: quantise first, then copy."""
    data, scale = quantize_activation(x, dtype) if ternary else (x, None)
    if not gather:
        return data, scale
    token_M = rows.token_M
    return data[token_M], None if scale is None else scale[token_M]


def _product(*factors: Tensor | None) -> Tensor | None:
    """The product of the factors that are there, one for each row; None when none is."""
    result = None
    for factor in factors:
        if factor is not None:
            result = factor if result is None else result * factor
    return result


def _times(x_MN: Tensor, factor_M: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows times their factors, rounded once to `dtype`."""
    return x_MN.to(dtype) if factor_M is None else scale_rows(x_MN, factor_M, dtype)


def _to_inputs(grad_MK: Tensor, factor_M: Tensor | None, rows: ExpertSort | None, dtype: torch.dtype) -> Tensor:
    """Rows times their factors in `dtype`; those of a token summed where `rows` says which they are."""
    if rows is None:
        return _times(grad_MK, factor_M, dtype)
    return sum_choices(grad_MK, rows.inverse_M, rows.top_k, factor_M, dtype)


class ExpertLinearFn(torch.autograd.Function):
    """Gather, grouped product, gate."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        codes: Tensor | None,
        scale: Tensor | None,
        gate: Tensor | None,
        rows: ExpertSort,
        gather: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        used = weight if codes is None else codes
        # the weight itself is only needed where it is an operand
        ctx.save_for_backward(x, used, scale, gate, rows.order_M, rows.inverse_M, rows.expert_M, rows.offsets_E)
        ctx.ternary, ctx.weight_dtype = codes is not None, weight.dtype
        ctx.gather, ctx.dtype, ctx.top_k = gather, dtype, rows.top_k
        counters.add("experts.forward")
        with no_autocast(x):
            data_MK, scale_M = _operand(x, rows, gather, ctx.ternary, dtype)
            y_MN = _Grouped(x, used, rows, dtype).matmul(data_MK, used.mT)
            factor = _product(scale_M, None if scale is None else scale[rows.expert_M], gate)
            return _times(y_MN, factor, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
        x, used, scale, gate, *sort = ctx.saved_tensors
        rows = ExpertSort(*sort, top_k=ctx.top_k)
        need_x, need_weight, _, _, need_gate = ctx.needs_input_grad[:5]
        grad_x = grad_weight = grad_gate = None
        counters.add("experts.backward")
        with no_autocast(x):
            grouped = _Grouped(x, used, rows, ctx.dtype)
            data_MK, scale_M = _operand(x, rows, ctx.gather, ctx.ternary, ctx.dtype)
            if need_x or need_gate:
                grad_MK = grouped.matmul(grad_MN, used)  # without its factors
                weight_M = None if scale is None else scale[rows.expert_M]
                if need_gate:
                    dots_M, factor = row_dots(grad_MK, data_MK), _product(scale_M, weight_M)
                    grad_gate = (dots_M if factor is None else dots_M * factor).to(gate.dtype)
                if need_x:
                    grad_x = _to_inputs(grad_MK, _product(weight_M, gate), rows if ctx.gather else None, x.dtype)
            if need_weight:
                left_MN = _times(grad_MN, _product(scale_M, gate), ctx.dtype)
                grad_weight = grouped.outer(left_MN, data_MK, used.shape[0]).to(ctx.weight_dtype)
        return grad_x, grad_weight, None, None, grad_gate, None, None, None


class CombineFn(torch.autograd.Function):
    """Sum of the rows of each token; its backward copies a token's gradient to its rows. No atomics either way."""

    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, order_M: Tensor, inverse_M: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order_M)
        ctx.top_k = top_k
        return sum_choices(y_MD, inverse_M, top_k, None, y_MD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        (order_M,) = ctx.saved_tensors
        return grad_TD[order_M // ctx.top_k], None, None, None
