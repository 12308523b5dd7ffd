"""The complex recurrence as a loop in complex128: the specification of the op, which itself needs CUDA and Triton."""

from __future__ import annotations

import torch
from torch import Tensor


def complex_scan_reference(x: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t x_t, y = h, with (real, imaginary) interleaved in the last axis; differentiable.

    Args:
        x: `[lanes, T, 2]`.
        a, b: `[lanes, T, 2]`, or `[lanes, 2]` where they do not change in time.
        state: h before the first step, `[lanes, 2]`.

    Returns:
        (y, the last h) in float64, whatever the dtype of the arguments.
    """
    x_LT, a_LT, b_LT, h_L = (torch.view_as_complex(t.double().contiguous()) for t in (x, a, b, state))
    a_LT, b_LT = (t if t.dim() == 2 else t[:, None].expand_as(x_LT) for t in (a_LT, b_LT))
    hs = []
    for t in range(x_LT.shape[1]):
        h_L = a_LT[:, t] * h_L + b_LT[:, t] * x_LT[:, t]
        hs.append(h_L)
    return torch.view_as_real(torch.stack(hs, 1)), torch.view_as_real(h_L)
