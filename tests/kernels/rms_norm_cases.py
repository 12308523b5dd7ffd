"""What the RMSNorm tests share: inputs, a float64 formula that is not the reference, and the op with its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sigma_kernels.rms_norm.op import rms_norm

EPS = 1e-6


class Inputs(NamedTuple):
    """`dy` and `dsum` are the gradients that arrive from above."""

    x: Tensor
    weight: Tensor | None
    residual: Tensor | None
    dy: Tensor
    dsum: Tensor | None


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, *, weight: bool = True, residual: bool = True, device: str = "cpu"
) -> Inputs:
    """Normal inputs from a fixed seed; the same values for every device."""
    generator = torch.Generator().manual_seed(sum(shape))

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    return Inputs(
        x=draw(*shape),
        weight=1 + 0.5 * draw(shape[-1]) if weight else None,
        residual=draw(*shape) if residual else None,
        dy=draw(*shape),
        dsum=draw(*shape) if residual else None,
    )


def exact(inputs: Inputs) -> dict[str, Tensor]:
    """Values and gradients in float64, written out by hand; the norm sees the sum as it is stored, rounded."""
    x, weight, residual, dy, dsum = (None if t is None else t.detach().double() for t in inputs)
    assert x is not None
    assert dy is not None
    total = x if residual is None else x + residual
    h = total if inputs.residual is None else total.to((inputs.x + inputs.residual).dtype).double()
    r = 1 / ((h * h).sum(-1, keepdim=True) / h.shape[-1] + EPS).sqrt()
    w = torch.ones_like(x[..., :1]) if weight is None else weight
    n = h * r
    dh = r * (dy * w - n * (dy * w * n).sum(-1, keepdim=True) / h.shape[-1])
    dh = dh if dsum is None else dh + dsum
    result = {"y": n * w, "dx": dh}
    if weight is not None:
        result["dweight"] = (dy * n).reshape(-1, h.shape[-1]).sum(0)
    return result if residual is None else result | {"sum": total, "dresidual": dh}


def run(inputs: Inputs, op: Callable = rms_norm) -> dict[str, Tensor]:
    """Values and gradients of `op`, under the names of `exact`."""
    x, weight, residual = (None if t is None else t.detach().requires_grad_() for t in inputs[:3])
    outputs = op(x, weight, residual=residual, eps=EPS)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = {"dx": x, "dweight": weight, "dresidual": residual}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    upstream = [grad for grad in (inputs.dy, inputs.dsum) if grad is not None]
    gradients = torch.autograd.grad(outputs, list(wanted.values()), upstream)
    values = dict(zip(("y", "sum"), (output.detach() for output in outputs), strict=False))
    return values | dict(zip(wanted, gradients, strict=True))
