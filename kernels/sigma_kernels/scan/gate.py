"""From the raw output of the scan to the layer's output: optional norm, gate, and the MIMO combination."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sigma_kernels.scan.prepare import NORM_EPS, along_steps
from sigma_kernels.scan.state import Mimo


def gate(y_BHRLP: Tensor, z_BHLP: Tensor, mimo: Mimo | None, y_norm_HP: Tensor | None) -> Tensor:
    """out_BHLP = sum_r out[r] * norm(Y[r]) * SiLU(z * z_HRP[r]); rank 1 without learned tensors when `mimo` is None.

    The norm stands before the gate: RMSNorm over the P channels of each head, for every rank on its own, with the
    weight shared by the ranks. Any number of leading axes; L is time within a chunk, or 1.
    """
    if y_norm_HP is not None:
        y_BHRLP = F.rms_norm(y_BHRLP, (y_BHRLP.shape[-1],), eps=NORM_EPS) * y_norm_HP[:, None, None]
    if mimo is None:
        return y_BHRLP.squeeze(-3) * F.silu(z_BHLP)
    z_HRLP, out_HRLP = (along_steps(t, z_BHLP.shape[-2]) for t in (mimo.z_HRP, mimo.out_HRP))
    return (y_BHRLP * F.silu(z_BHLP.unsqueeze(-3) * z_HRLP) * out_HRLP).sum(-3)
