"""One decode step of the Mamba-3 scan on the state, in place."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from sigma_kernels.scan.gate import gate
from sigma_kernels.scan.phase import advance_phase, radians, rotate
from sigma_kernels.scan.prepare import ScanParameters, expand_x, per_head, prepare
from sigma_kernels.scan.state import Mamba3State


@torch.no_grad()
def mamba3_step_reference(
    state: Mamba3State,
    x_BHP: Tensor,
    z_BHP: Tensor,
    in_BRGN: Tensor,
    out_BRGN: Tensor,
    dd_dt_BH: Tensor,
    dd_a_BH: Tensor,
    trap_BH: Tensor,
    angle_BS: Tensor,
    *,
    valid_B: Tensor | None = None,
    **parameters: Unpack[ScanParameters],
) -> Tensor:
    """`op.mamba3_step`. Not differentiable: the tensors of `state` are overwritten."""
    inputs = (x_BHP, z_BHP, in_BRGN, out_BRGN, dd_dt_BH, dd_a_BH, trap_BH, angle_BS)
    valid_BT = None if valid_B is None else valid_B[:, None]
    p = prepare(*(t[:, None] for t in inputs), valid_BT=valid_BT, **parameters)

    phase_BHS = advance_phase(state.phase_BHS, p.turns_BTHS[:, 0])
    angle_BHRS = radians(phase_BHS, p.x_BTHP.dtype)[:, :, None]
    key_BHRN = rotate(per_head(p.in_BTRGN[:, 0], p.in_bias_HRN), angle_BHRS)
    query_BHRN = rotate(per_head(p.out_BTRGN[:, 0], p.out_bias_HRN), angle_BHRS)
    x_BHRP = expand_x(p.x_BTHP[:, 0], p.mimo)

    # Both ends of the trapezoid in one product over 2R rows. A padded row has alpha = 1 and both weights 0.
    alpha, gamma, left = (c[:, 0, :, None, None] for c in (p.log_decay_BTH.exp(), p.gamma_BTH, p.left_BTH))
    ends_BHRP = torch.cat([expand_x(state.x_BHP, p.mimo) * (left * alpha), x_BHRP * gamma], 2)
    keys_BHRN = torch.cat([state.key_BRHN.transpose(1, 2), key_BHRN], 2)
    state_BHPN = state.state_BHPN.to(p.x_BTHP.dtype).mul_(alpha).add_(ends_BHRP.mT @ keys_BHRN)
    y_BHRP = query_BHRN @ state_BHPN.mT + p.skip_H[:, None, None] * x_BHRP

    state.phase_BHS.copy_(phase_BHS)
    state.state_BHPN.copy_(state_BHPN)  # rounds to a state in bf16, and only here; itself otherwise
    key_BRHN, last_x_BHP = key_BHRN.transpose(1, 2), p.x_BTHP[:, 0]
    if valid_B is not None:
        key_BRHN = torch.where(valid_B[:, None, None, None], key_BRHN, state.key_BRHN)
        last_x_BHP = torch.where(valid_B[:, None, None], last_x_BHP, state.x_BHP)
    state.key_BRHN.copy_(key_BRHN)
    state.x_BHP.copy_(last_x_BHP)
    return gate(y_BHRP[..., None, :], p.z_BTHP[:, 0, :, None], p.mimo, p.y_norm_HP)[:, :, 0].to(x_BHP.dtype)
