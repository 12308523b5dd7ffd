"""Products of tokens with the matrices of the experts that they were sent to, by a loop: the specification.

M rows sorted by expert, E experts, K input channels, N output channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def expert_spans(ends: list[int]) -> Iterator[tuple[int, slice]]:
    """(expert, its rows) for every expert that has rows; `ends[e]` is where the rows of expert e end."""
    start = 0
    for expert, end in enumerate(ends):
        if end > start:
            yield expert, slice(start, end)
        start = end


def expert_matmul_reference(x_MK: Tensor, w_ENK: Tensor, offsets_E: Tensor) -> Tensor:
    """`y_MN[m] = w_ENK[expert of m] @ x_MK[m]`; `offsets_E` are the cumulative ends of the experts' rows."""
    spans = expert_spans(offsets_E.tolist())
    parts = [x_MK[rows] @ w_ENK[expert].mT for expert, rows in spans]
    return torch.cat(parts) if parts else x_MK.new_zeros(0, w_ENK.shape[1])
