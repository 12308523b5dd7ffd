"""Momentum, weight step and squares of rows in plain PyTorch: the specification, and what runs without Triton."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sigma_kernels.matrix_step.blocks import BlockList
from sigma_kernels.matrix_step.codes import decode_int8, decode_residual, encode_int8, encode_residual

Form = Literal["nesterov", "average", "sign"]
Decay = Literal["plain", "cautious", "prox", "cautious_prox"]


def store(target: Tensor, value: Tensor, found_inf: Tensor | None) -> None:
    """Overwrite `target`, or leave it where the device scalar `found_inf` is 1, without asking the device."""
    if found_inf is None:
        target.copy_(value)
    else:
        torch.where(found_inf.bool(), target, value.to(target.dtype), out=target)


def momentum_step_reference(
    blocks: BlockList,
    gradients: Sequence[Tensor | None],
    momentum_KMN: Tensor,
    scale: Tensor | None,
    *,
    beta: float,
    form: Form,
    found_inf: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See `op.momentum_step`."""
    out_KMN = torch.empty(momentum_KMN.shape, dtype=dtype, device=momentum_KMN.device)
    active_K = torch.zeros(momentum_KMN.shape[0], dtype=torch.int32, device=momentum_KMN.device)
    start = 0
    for view, count in zip(blocks.views(gradients), blocks.counts, strict=True):
        own = slice(start, start + count)
        past = momentum_KMN[own]
        past = past.float() if scale is None else decode_int8(past, scale[own])
        grad = torch.zeros_like(past) if view is None else view.float()
        average = torch.lerp(past, grad, 1 - beta)
        out_KMN[own] = _mixed(grad, average, beta, form)
        active_K[own] = (grad != 0).flatten(1).any(dim=1).int()
        if scale is None:
            store(momentum_KMN[own], average, found_inf)
        else:
            codes, scales = encode_int8(average)
            store(momentum_KMN[own], codes, found_inf)
            store(scale[own], scales, found_inf)
        start += count
    return out_KMN, active_K


def _mixed(grad: Tensor, average: Tensor, beta: float, form: Form) -> Tensor:
    match form:
        case "nesterov":
            return grad.lerp(average, beta)
        case "average":
            return average
        case "sign":
            return average.sign()


def weight_step_reference(
    blocks: BlockList,
    weights: Sequence[Tensor],
    residual_KMN: Tensor | None,
    direction_KMN: Tensor,
    scale: Tensor | None,
    rate_K: Tensor,
    decay_K: Tensor,
    *,
    active_K: Tensor,
    decay: Decay,
    found_inf: Tensor | None,
) -> None:
    """See `op.weight_step`."""
    start = 0
    for view, count in zip(blocks.views(weights), blocks.counts, strict=True):
        assert view is not None
        own = slice(start, start + count)
        residual = None if residual_KMN is None else residual_KMN[own]
        now = view.float() if residual is None else decode_residual(view, residual)
        update = direction_KMN[own].float()
        if scale is not None:
            update = update * scale[own]
        moved = _moved(now, update, rate_K[own, None, None], decay_K[own, None, None], decay)
        moved = torch.where(active_K[own, None, None] != 0, moved, now)
        if residual is None:
            store(view, moved, found_inf)
        else:
            coarse, fine = encode_residual(moved)
            store(view, coarse, found_inf)
            store(residual, fine, found_inf)
        start += count


def _moved(now: Tensor, update: Tensor, rate: Tensor, factor: Tensor, decay: Decay) -> Tensor:
    if decay.startswith("cautious"):
        factor = torch.where(update * now >= 0, factor, 1.0)
    if decay.endswith("prox"):
        return torch.addcmul(now, update, -rate) * factor
    return torch.addcmul(now * factor, update, -rate)


def row_squares_reference(x_KMN: Tensor) -> Tensor:
    """See `op.row_squares`."""
    return torch.linalg.vector_norm(x_KMN, dim=2, dtype=torch.float32).square()
