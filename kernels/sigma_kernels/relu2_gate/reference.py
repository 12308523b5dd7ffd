"""The ReLU^2 gate in plain PyTorch: the specification of the op, and what runs where Triton cannot."""

from __future__ import annotations

import torch
from torch import Tensor


def relu2_gate_reference(up: Tensor) -> Tensor:
    """relu(g)^2 * u for the halves (g, u) of the last axis: `[..., 2 F]` to `[..., F]`.

    ReLU^2 as in b1.58 2B4T (2504.12285). Computed in at least fp32, rounded once to the dtype of `up`; so is the
    gradient. relu(NaN) is NaN.
    """
    gate, value = up.to(torch.promote_types(up.dtype, torch.float32)).chunk(2, dim=-1)
    return (gate.relu().square() * value).to(up.dtype)
