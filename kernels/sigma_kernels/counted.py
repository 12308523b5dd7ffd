"""Counts the executions of a reference, so that a counter reads the same whichever backend did the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sigma_kernels import counters


def count_reference(op: str, *outputs: Tensor) -> tuple[Tensor, ...]:
    """Count `<op>.forward` now and `<op>.backward` when a gradient reaches any of `outputs`; returns them unchanged.

    A Triton op counts in its autograd Function; a reference is many autograd nodes, so this puts one in front of them.
    """
    counters.add(f"{op}.forward")
    if torch.is_grad_enabled() and any(output.requires_grad for output in outputs):
        return _CountBackward.apply(op, *outputs)  # pyright: ignore[reportReturnType]
    return outputs


class _CountBackward(torch.autograd.Function):
    """The identity; its backward counts."""

    @staticmethod
    def forward(ctx: Any, op: str, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        ctx.set_materialize_grads(False)
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        counters.add(f"{ctx.op}.backward")
        return (None, *grads)
