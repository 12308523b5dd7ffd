"""Where a chunked scan begins and ends: from and to the state that decoding carries."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels.scan.packing import first_valid, last_valid
from sigma_kernels.scan.phase import rotate
from sigma_kernels.scan.prepare import Prepared, expand_x, per_head
from sigma_kernels.scan.state import Mamba3State


def entering_state(p: Prepared, initial: Mamba3State | None) -> Tensor:
    """h + left * x_prev k_prev^T: the left end of the first step's trapezoid, which then decays with the state."""
    batch, _, heads, head_size = p.x_BTHP.shape
    if initial is None:
        return p.left_BTH.new_zeros(batch, heads, head_size, p.in_BTRGN.shape[-1])
    left_BH = p.left_BTH[:, 0] if p.valid_BT is None else p.left_BTH[_rows(batch, p), first_valid(p.valid_BT)]
    # No matrix product: its gradient would be rounded to 16 bits where backward is called inside autocast.
    product_BHRPN = expand_x(initial.x_BHP, p.mimo)[..., None] * initial.key_BRHN.transpose(1, 2)[..., None, :]
    return initial.state_BHPN + left_BH[..., None, None] * product_BHRPN.sum(2)


def leaving_state(
    p: Prepared, angle_BHS: Tensor, phase_BHS: Tensor, state_BHPN: Tensor, initial: Mamba3State | None
) -> Mamba3State:
    """The state after the last valid step; a row without one keeps what it came with.

    `angle_BHS` (radians) and `phase_BHS` (int32 turns) are those of the last step: a padded one does not turn.
    """
    batch = state_BHPN.shape[0]
    at = (slice(None), -1) if p.valid_BT is None else (_rows(batch, p), last_valid(p.valid_BT))
    key_BHRN = rotate(per_head(p.in_BTRGN[at].to(p.in_bias_HRN.dtype), p.in_bias_HRN), angle_BHS[:, :, None])
    key_BRHN, x_BHP = key_BHRN.transpose(1, 2), p.x_BTHP[at].to(state_BHPN.dtype)
    if p.valid_BT is not None:
        wrote = p.valid_BT.any(1)[:, None, None]
        key_BRHN = torch.where(wrote[..., None], key_BRHN, 0 if initial is None else initial.key_BRHN)
        x_BHP = torch.where(wrote, x_BHP, 0 if initial is None else initial.x_BHP)
    # Copies: decoding writes into the state, which must be neither the input nor a view that keeps it alive.
    return Mamba3State(phase_BHS.clone(), state_BHPN, key_BRHN, x_BHP.clone())


def _rows(batch: int, p: Prepared) -> Tensor:
    return torch.arange(batch, device=p.x_BTHP.device)
