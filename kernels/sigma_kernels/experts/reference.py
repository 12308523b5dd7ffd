"""Products of tokens with the matrices of the experts that they were sent to, by a loop, dot products of rows, and
the sum of the rows of a token: the specification.

T tokens, M rows sorted by expert, E experts, K input channels, N output channels, D either.
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


def row_dots_reference(a_MN: Tensor, b_MN: Tensor) -> Tensor:
    """The dot product of each pair of rows, in fp32 or what is wider: `[M]`."""
    wide = torch.promote_types(torch.promote_types(a_MN.dtype, b_MN.dtype), torch.float32)
    return (a_MN.to(wide) * b_MN).sum(-1)


def sum_choices_reference(
    y_MD: Tensor, inverse_M: Tensor, top_k: int, factor_M: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The rows `inverse_M[t * top_k + k]` of `y_MD`, times their factors, added for each t in the order of k: `[T, D]`.

    In fp32 or what is wider, rounded once to `dtype`.
    """
    given = y_MD.dtype if factor_M is None else torch.promote_types(y_MD.dtype, factor_M.dtype)
    wide = torch.promote_types(given, torch.float32)
    total = torch.zeros(inverse_M.numel() // top_k, y_MD.shape[1], dtype=wide, device=y_MD.device)
    for row_T in inverse_M.reshape(-1, top_k).unbind(1):
        y_TD = y_MD[row_T].to(wide)
        total += y_TD if factor_M is None else y_TD * factor_M[row_T, None]
    return total.to(dtype)
