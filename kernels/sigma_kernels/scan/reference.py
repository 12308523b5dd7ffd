"""The specification of the Mamba-3 scan: one step after the other, in the dtype of the inputs. Slow and readable."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor

from sigma_kernels.scan.gate import gate
from sigma_kernels.scan.phase import advance_phase, radians, rotate
from sigma_kernels.scan.prepare import Prepared, ScanParameters, expand_x, per_head, prepare
from sigma_kernels.scan.state import Mamba3State


def mamba3_scan_reference(
    x_BTHP: Tensor,
    z_BTHP: Tensor,
    in_BTRGN: Tensor,
    out_BTRGN: Tensor,
    dd_dt_BTH: Tensor,
    dd_a_BTH: Tensor,
    trap_BTH: Tensor,
    angle_BTS: Tensor,
    *,
    initial_state: Mamba3State | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    valid_BT: Tensor | None = None,
    chunk: int = 64,
    **parameters: Unpack[ScanParameters],
) -> Tensor | tuple[Tensor, Mamba3State]:
    """`op.mamba3_scan` as a sequential loop (Mamba-3, arXiv 2603.15569). `chunk` has no meaning here."""
    p = prepare(
        x_BTHP,
        z_BTHP,
        in_BTRGN,
        out_BTRGN,
        dd_dt_BTH,
        dd_a_BTH,
        trap_BTH,
        angle_BTS,
        valid_BT=valid_BT,
        **parameters,
    )
    state = initial_state.to(p.x_BTHP.dtype) if initial_state is not None else _zero_state(p, cu_seqlens)
    if cu_seqlens is None:
        y_BTHP, state = _run(p, state, 0, x_BTHP.shape[1])
    else:
        bounds = cu_seqlens.tolist()
        runs = [_run(p, _rows(state, i), start, end) for i, (start, end) in enumerate(pairwise(bounds))]
        y_BTHP, state = torch.cat([y for y, _ in runs], 1), _stack([s for _, s in runs])
    y_BTHP = y_BTHP.to(x_BTHP.dtype)
    if not return_final_state:
        return y_BTHP
    # Copies: decoding writes into the state, which must not be a view of an input.
    return y_BTHP, Mamba3State(
        state.phase_BHS.clone(), state.state_BHPN.clone(), state.key_BRHN.clone(), state.x_BHP.clone()
    )


def _zero_state(p: Prepared, cu_seqlens: Tensor | None) -> Mamba3State:
    batch, _, heads, head_size = p.x_BTHP.shape
    return Mamba3State.zeros(
        batch if cu_seqlens is None else cu_seqlens.numel() - 1,
        heads=heads,
        head_size=head_size,
        state_size=p.in_BTRGN.shape[-1],
        rank=p.in_BTRGN.shape[2],
        pairs=p.turns_BTHS.shape[-1],
        device=p.x_BTHP.device,
        dtype=p.x_BTHP.dtype,
    )


def _rows(state: Mamba3State, i: int) -> Mamba3State:
    return Mamba3State(*(t[i : i + 1] for t in (state.phase_BHS, state.state_BHPN, state.key_BRHN, state.x_BHP)))


def _stack(states: list[Mamba3State]) -> Mamba3State:
    return Mamba3State(
        torch.cat([s.phase_BHS for s in states]),
        torch.cat([s.state_BHPN for s in states]),
        torch.cat([s.key_BRHN for s in states]),
        torch.cat([s.x_BHP for s in states]),
    )


def _run(p: Prepared, state: Mamba3State, start: int, end: int) -> tuple[Tensor, Mamba3State]:
    """Steps start..end-1 of every row."""
    ys = [p.x_BTHP[:, :0]]
    travelled_BHS = torch.zeros_like(state.phase_BHS, dtype=p.x_BTHP.dtype)
    for t in range(start, end):
        y_BHP, state, travelled_BHS = _step(p, state, travelled_BHS, t)
        ys.append(y_BHP[:, None])
    return torch.cat(ys, 1), state


def _step(p: Prepared, state: Mamba3State, travelled_BHS: Tensor, t: int) -> tuple[Tensor, Mamba3State, Tensor]:
    """One step; `travelled_BHS` is the real phase since the start, which only gives the gradient."""
    phase_BHS = advance_phase(state.phase_BHS, p.turns_BTHS[:, t])
    travelled_BHS = travelled_BHS + 2 * math.pi * p.turns_BTHS[:, t]
    angle_BHS = radians(phase_BHS, travelled_BHS.dtype) + (travelled_BHS - travelled_BHS.detach())

    key_BHRN = rotate(per_head(p.in_BTRGN[:, t], p.in_bias_HRN), angle_BHS[:, :, None])
    query_BHRN = rotate(per_head(p.out_BTRGN[:, t], p.out_bias_HRN), angle_BHS[:, :, None])
    x_BHRP = expand_x(p.x_BTHP[:, t], p.mimo)

    alpha, gamma, left = (c[:, t, :, None, None] for c in (p.log_decay_BTH.exp(), p.gamma_BTH, p.left_BTH))
    right_BHPN = torch.einsum("bhrp,bhrn->bhpn", x_BHRP, key_BHRN)
    left_BHPN = torch.einsum("bhrp,brhn->bhpn", expand_x(state.x_BHP, p.mimo), state.key_BRHN)
    state_BHPN = alpha * state.state_BHPN + left * alpha * left_BHPN + gamma * right_BHPN
    y_BHRP = torch.einsum("bhpn,bhrn->bhrp", state_BHPN, query_BHRN) + p.skip_H[:, None, None] * x_BHRP

    after = Mamba3State(phase_BHS, state_BHPN, key_BHRN.transpose(1, 2), p.x_BTHP[:, t])
    if p.valid_BT is not None:
        after = _select(p.valid_BT[:, t], after, state)
    z_BHLP = p.z_BTHP[:, t, :, None]
    return gate(y_BHRP[:, :, :, None], z_BHLP, p.mimo, p.y_norm_HP)[:, :, 0], after, travelled_BHS


def _select(valid_B: Tensor, new: Mamba3State, old: Mamba3State) -> Mamba3State:
    """A padded step leaves the whole state as it was."""
    keep = valid_B[:, None, None]
    return Mamba3State(
        torch.where(keep, new.phase_BHS, old.phase_BHS),
        torch.where(keep[..., None], new.state_BHPN, old.state_BHPN),
        torch.where(keep[..., None], new.key_BRHN, old.key_BRHN),
        torch.where(keep, new.x_BHP, old.x_BHP),
    )
