"""Dot products of the rows of two matrices, and the sum of the rows of each token; no gradients.

T tokens, M = T * top_k rows, N or D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels import dispatch
from sigma_kernels.experts.reference import row_dots_reference, sum_choices_reference
from sigma_kernels.row_tiles import FLOATS


def row_dots(a_MN: Tensor, b_MN: Tensor) -> Tensor:
    """The dot product of each row of `a_MN` with the same row of `b_MN`, in fp32 (fp64 for fp64): `[M]`.

    Triton on CUDA, else the reference; they add in different orders. The same bits in every run.
    """
    limit = None
    if a_MN.dtype not in FLOATS or b_MN.dtype not in FLOATS:
        limit = f"the kernel does not multiply {a_MN.dtype} and {b_MN.dtype}"
    if dispatch.use_triton("row_dots", a_MN, b_MN, limit=limit):
        from sigma_kernels.experts.row_kernels import launch_row_dots

        return launch_row_dots(a_MN, b_MN)
    return row_dots_reference(a_MN, b_MN)


def sum_choices(y_MD: Tensor, inverse_M: Tensor, top_k: int, factor_M: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`out[t]` = the sum over k of `factor_M[m] * y_MD[m]`, m = `inverse_M[t * top_k + k]`: `[T, D]` in `dtype`.

    Added in fp32 (fp64 for fp64) in the order of k, and rounded once. Triton on CUDA, else the reference, with the
    same bits.
    """
    limit = None
    if y_MD.dtype not in FLOATS or dtype not in FLOATS or not (factor_M is None or factor_M.dtype == torch.float32):
        factors = "" if factor_M is None else f" times {factor_M.dtype}"
        limit = f"the kernel does not turn sums of {y_MD.dtype}{factors} into {dtype}"
    given = (y_MD, inverse_M) if factor_M is None else (y_MD, inverse_M, factor_M)
    if dispatch.use_triton("sum_choices", *given, limit=limit):
        from sigma_kernels.experts.row_kernels import launch_sum_choices

        return launch_sum_choices(y_MD, inverse_M, top_k, factor_M, dtype)
    return sum_choices_reference(y_MD, inverse_M, top_k, factor_M, dtype)
