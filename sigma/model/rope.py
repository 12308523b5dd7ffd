"""Rotary position embedding with half-split pairs (Su et al. 2021, arXiv 2104.09864).

Channel i is paired with channel i + dim/2, as the SSM scan pairs its rotating channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(position_BT: Tensor, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[B, T, dim/2]` (fp32) of the angles `position * theta ** (-2 i / dim)` in radians."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=position_BT.device) / dim
    angle_BTS = position_BT[..., None].float() * theta**-exponent
    return angle_BTS.cos(), angle_BTS.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[..., i], x[..., i + dim/2]) of `x [..., dim]` by the angles of `cos` and `sin [..., dim/2]`.

    Computed in at least fp32, returned in the type of `x`. The dot product of two rotated vectors depends on the
    difference of their positions only.
    """
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
