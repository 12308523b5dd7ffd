"""What the Mamba-3 scan carries between calls, and the learned tensors of its MIMO form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Mimo:
    """Learned expansions of rank R (Mamba-3, arXiv 2603.15569).

    X[r] = x * x_HRP[r], Z[r] = z * z_HRP[r], y = sum_r out_HRP[r] * Y[r] * SiLU(Z[r]).
    """

    x_HRP: Tensor
    z_HRP: Tensor
    out_HRP: Tensor


@dataclass
class Mamba3State:
    """Everything that decoding needs after a token; constant in the length of the sequence.

    `phase_BHS` holds int32 turns (2**32 is one turn, so that overflow is the wrap), `state_BHPN` the SSM state,
    `key_BRHN` the last rotated input matrix and `x_BHP` the last input before the MIMO expansion: the two factors of
    the trapezoid's left end. All but the phase are fp32 (fp64 for fp64 inputs). To halve the memory and the traffic of
    decoding, `state_BHPN` may be kept in bf16: a step computes in fp32 and rounds once, when it stores.
    """

    phase_BHS: Tensor
    state_BHPN: Tensor
    key_BRHN: Tensor
    x_BHP: Tensor

    @classmethod
    def zeros(
        cls,
        batch: int,
        *,
        heads: int,
        head_size: int,
        state_size: int,
        rank: int,
        pairs: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Mamba3State:
        """The state before the first token."""
        return cls(
            phase_BHS=torch.zeros(batch, heads, pairs, device=device, dtype=torch.int32),
            state_BHPN=torch.zeros(batch, heads, head_size, state_size, device=device, dtype=dtype),
            key_BRHN=torch.zeros(batch, rank, heads, state_size, device=device, dtype=dtype),
            x_BHP=torch.zeros(batch, heads, head_size, device=device, dtype=dtype),
        )

    def to(self, dtype: torch.dtype) -> Mamba3State:
        """The same state with its floating tensors in `dtype`; the phase stays int32."""
        return Mamba3State(self.phase_BHS, self.state_BHPN.to(dtype), self.key_BRHN.to(dtype), self.x_BHP.to(dtype))
