"""RMSNorm as a module: gain and epsilon around the fused op."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from sigma_kernels.rms_norm.op import rms_norm


class RMSNorm(nn.Module):
    """y = x / rms(x) * weight over the last axis (Zhang and Sennrich, 1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    @overload
    def forward(self, x: Tensor, residual: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The norm of `x`; with a residual the pair (norm of the sum, the sum)."""
        return rms_norm(x, self.weight, residual=residual, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
