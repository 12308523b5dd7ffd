"""What the pipelined loops of symmetric products compute on a small example, for the self-test at the start."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels.orthogonalise.kernel import TritonProducts

SHAPE = 2, 384, 512


def pipelined_loop(device: torch.device) -> list[Tensor]:
    """The Gram matrices of random fp16 matrices."""
    x_KMN = torch.randn(*SHAPE, generator=torch.Generator(device).manual_seed(0), device=device)
    return [TritonProducts().gram(x_KMN.to(torch.float16) * SHAPE[2] ** -0.5)]
