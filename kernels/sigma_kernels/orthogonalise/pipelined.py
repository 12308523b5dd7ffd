"""What the pipelined loops of symmetric products compute on a small example, for the self-test at the start."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels.orthogonalise.kernel import SMALL, TritonProducts

SHAPE = 2, SMALL + 128, 512


def pipelined_loop(device: torch.device) -> list[Tensor]:
    """The Gram matrices of large and of small random fp16 matrices, which have loops of their own."""
    x_KMN = torch.randn(*SHAPE, generator=torch.Generator(device).manual_seed(0), device=device)
    x_KMN = x_KMN.to(torch.float16) * SHAPE[2] ** -0.5
    return [TritonProducts().gram(x_KMN[:, :rows]) for rows in (SHAPE[1], SMALL)]
