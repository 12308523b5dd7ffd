"""The GPU path of `op.mamba3_scan`: norms, coefficients and states in PyTorch around `ScanFn`."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from sigma_kernels.rms_norm.op import rms_norm
from sigma_kernels.scan.boundary import entering_state, leaving_state
from sigma_kernels.scan.packing import Packing, neighbours, padded_index
from sigma_kernels.scan.phase import radians, rotate
from sigma_kernels.scan.prepare import (
    NORM_EPS,
    Coefficients,
    Prepared,
    ScanParameters,
    clean,
    coefficients,
    half_turns,
)
from sigma_kernels.scan.state import Mamba3State, Mimo
from sigma_kernels.scan.triton_call import Inputs
from sigma_kernels.scan.triton_scan import ScanFn


def mamba3_scan_triton(
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
    **parameters: Unpack[ScanParameters],
) -> Tensor | tuple[Tensor, Mamba3State]:
    """`op.mamba3_scan` for 16- and 32-bit inputs on CUDA.

    Packed sequences stay in one row, cut apart by masks. When their states are given or asked for, the row is unpacked
    into a padded batch instead: that is prefill, where n is small.
    """
    inputs = (x_BTHP, z_BTHP, in_BTRGN, out_BTRGN, dd_dt_BTH, dd_a_BTH, trap_BTH, angle_BTS)
    if cu_seqlens is None or (initial_state is None and not return_final_state):
        y_BTHP, state = _scan(inputs, parameters, initial_state, return_final_state, cu_seqlens, valid_BT)
    else:
        index_nT, real_nT = padded_index(cu_seqlens)
        valid_nT = real_nT if valid_BT is None else real_nT & valid_BT[0, index_nT]
        rows = tuple(t[0, index_nT] for t in inputs)
        y_nTHP, state = _scan(rows, parameters, initial_state, return_final_state, None, valid_nT)
        y_BTHP = y_nTHP[real_nT][None]
    return (y_BTHP, state) if state is not None else y_BTHP


def _scan(
    inputs: tuple[Tensor, ...],
    parameters: ScanParameters,
    initial: Mamba3State | None,
    return_final: bool,
    cu_seqlens: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, Mamba3State | None]:
    inputs = tuple(_rows(clean(t, valid_BT)) for t in inputs)
    initial = None if initial is None else initial.to(torch.float32)
    given = _given(inputs, parameters, cu_seqlens, valid_BT)
    if initial is None and not return_final:
        return ScanFn.apply(*vars(given).values())[0], None  # type: ignore[index]
    p, numbers = _prepared(given, parameters, valid_BT)
    if initial is not None:
        # into the frame of the initial phase
        angle_BHS = -radians(initial.phase_BHS, torch.float32)
        given.initial = rotate(entering_state(p, initial), angle_BHS[:, :, None]).mT.contiguous()
    y_BTHP, final_BHNP, total_BHS = ScanFn.apply(*vars(given).values())  # type: ignore[misc]
    if not return_final:
        return y_BTHP, None
    phase_BHS = total_BHS if initial is None else total_BHS + initial.phase_BHS
    # the gradient of the real, unrounded sum
    # No matrix product: its gradient would be rounded to 16 bits where backward is called inside autocast.
    turned_BHS = (numbers.dt_BTH[..., None] * p.turns_BTHS[:, :, None]).sum(1) * (2 * math.pi)
    angle_BHS = radians(phase_BHS, torch.float32) + (turned_BHS - turned_BHS.detach())
    state_BHPN = rotate(final_BHNP.mT, angle_BHS[:, :, None]).contiguous()
    if (
        valid_BT is not None and initial is not None
    ):  # turned in and back, a state that nothing touched would be rounded
        state_BHPN = torch.where(valid_BT.any(1)[:, None, None, None], state_BHPN, initial.state_BHPN)
    return y_BTHP, leaving_state(p, angle_BHS, phase_BHS, state_BHPN, initial)


def _given(
    inputs: tuple[Tensor, ...], parameters: ScanParameters, cu_seqlens: Tensor | None, valid_BT: Tensor | None
) -> Inputs:
    """The operands of `ScanFn`, without an initial state."""
    x, z, in_, out, dd_dt, dd_a, trap, angle = inputs
    mimo, y_norm = parameters.get("mimo"), parameters.get("y_norm_HP")
    following, previous = (None, None) if valid_BT is None else neighbours(valid_BT)
    return Inputs(
        x,
        z,
        rms_norm(out, parameters["out_norm_N"], eps=NORM_EPS),
        rms_norm(in_, parameters["in_norm_N"], eps=NORM_EPS),
        dd_dt,
        dd_a,
        trap,
        angle,
        *(_dense(parameters[name]) for name in ("dt_bias_H", "out_bias_HRN", "in_bias_HRN", "skip_H")),
        norm=None if y_norm is None else _dense(y_norm),
        expand_x=None if mimo is None else _dense(mimo.x_HRP),
        expand_z=None if mimo is None else _dense(mimo.z_HRP),
        combine=None if mimo is None else _dense(mimo.out_HRP),
        initial=None,
        sequence=None if cu_seqlens is None else Packing.of(cu_seqlens, x.shape[1]).sequence_T.int(),
        valid=None if valid_BT is None else valid_BT.contiguous(),
        next=following,
        previous=previous,
    )


def _rows(t: Tensor) -> Tensor:
    """`t` itself where one stride leads from any step to the next, as in a view of a projection; else a copy."""
    plain = t.stride(-1) == 1 and (t.shape[0] == 1 or t.stride(0) == t.shape[1] * t.stride(1))
    # a copy: `contiguous` leaves the stride of an axis of one element as it is
    return t if plain else t.clone(memory_format=torch.contiguous_format)


def _dense(parameter: Tensor) -> Tensor:
    return parameter.float().contiguous()


def _prepared(given: Inputs, parameters: ScanParameters, valid_BT: Tensor | None) -> tuple[Prepared, Coefficients]:
    """What the states at both ends need, in fp32 but for x and the matrices; `turns_BTHS` is per unit of time."""
    numbers = coefficients(
        given.dd_dt.float(), given.dd_a.float(), given.trap.float(), parameters["dt_bias_H"], valid_BT
    )
    mimo = parameters.get("mimo")
    prepared = Prepared(
        x_BTHP=given.x,
        z_BTHP=given.z,
        in_BTRGN=given.k,
        out_BTRGN=given.q,
        log_decay_BTH=numbers.log_decay_BTH,
        gamma_BTH=numbers.gamma_BTH,
        left_BTH=numbers.left_BTH,
        turns_BTHS=half_turns(given.angle.float()),
        in_bias_HRN=given.k_bias,
        out_bias_HRN=given.q_bias,
        skip_H=given.skip,
        mimo=None if mimo is None else Mimo(mimo.x_HRP.float(), mimo.z_HRP.float(), mimo.out_HRP.float()),
        y_norm_HP=given.norm,
        valid_BT=valid_BT,
    )
    return prepared, numbers
