"""The Mamba-3 scan by chunks: the training form. Lays the coefficients out in chunks for `dual.DualFn`.

Each outer product k_s x_s^T enters the recurrence twice: at s with gamma_s, and at the next step with the left weight
of that step. Collected once, its weight is scale_s = gamma_s + left_next(s) (Mamba-3, arXiv 2603.15569).
Layout: [M, H, R, L, ...] with M = B * C chunks of L steps; rank outside time keeps the mask's last axis contiguous.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma_kernels.scan.boundary import entering_state, leaving_state
from sigma_kernels.scan.dual import DualFn, Masks
from sigma_kernels.scan.gate import gate
from sigma_kernels.scan.packing import Packing, left_of_next, padded_index
from sigma_kernels.scan.phase import accumulate_phase, rotate
from sigma_kernels.scan.prepare import Prepared, ScanParameters, along_steps, prepare
from sigma_kernels.scan.state import Mamba3State


def mamba3_scan_chunked(
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
    """`op.mamba3_scan` by chunks of at most `chunk` rows (time steps x rank); the result does not depend on `chunk`.

    Packed sequences stay in one row, cut apart by masks. When their states are given or asked for, the row is unpacked
    into a padded batch instead: that is prefill, where n is small.
    """
    inputs = (x_BTHP, z_BTHP, in_BTRGN, out_BTRGN, dd_dt_BTH, dd_a_BTH, trap_BTH, angle_BTS)
    if cu_seqlens is None or (initial_state is None and not return_final_state):
        y_BTHP, state = _scan(prepare(*inputs, valid_BT=valid_BT, **parameters), initial_state, cu_seqlens, chunk)
    else:
        index_nT, real_nT = padded_index(cu_seqlens)
        valid_nT = real_nT if valid_BT is None else real_nT & valid_BT[0, index_nT]
        p = prepare(*(t[0, index_nT] for t in inputs), valid_BT=valid_nT, **parameters)
        y_nTHP, state = _scan(p, initial_state, None, chunk)
        y_BTHP = y_nTHP[real_nT][None]
    y_BTHP = y_BTHP.to(x_BTHP.dtype)
    return (y_BTHP, state) if return_final_state else y_BTHP


def _scan(
    p: Prepared, initial: Mamba3State | None, cu_seqlens: Tensor | None, chunk: int
) -> tuple[Tensor, Mamba3State]:
    batch, steps, heads, head_size = p.x_BTHP.shape
    initial = None if initial is None else initial.to(p.x_BTHP.dtype)
    packing = None if cu_seqlens is None else Packing.of(cu_seqlens, steps)
    angle_BTHS, phase_BTHS = accumulate_phase(
        p.turns_BTHS,
        initial_BHS=None if initial is None else initial.phase_BHS,
        first_T=None if packing is None else packing.first_T,
        last_T=None if packing is None else packing.last_T,
    )
    count, length = chunk_grid(steps, chunk, p.in_BTRGN.shape[2])
    angle_MHRLS = _by_head(angle_BTHS, count, length).contiguous()[:, :, None]
    gamma_MHL = _by_head(p.gamma_BTH, count, length)
    y_MHRLP, state_BHPN = _dual(
        _head_matrices(p.out_BTRGN, p.out_bias_HRN, angle_MHRLS),
        _head_matrices(p.in_BTRGN, p.in_bias_HRN, angle_MHRLS),
        _expand_chunks(p, count, length),
        _by_head(p.log_decay_BTH, count, length),
        gamma_MHL + _by_head(left_of_next(p.left_BTH, p.valid_BT), count, length),
        gamma_MHL,
        p.skip_H,
        entering_state(p, initial),
        _masks(packing, count, length, p.x_BTHP.device),
    )
    y_MHLP = gate(y_MHRLP, _by_head(p.z_BTHP, count, length), p.mimo, p.y_norm_HP)
    y_BTHP = y_MHLP.transpose(1, 2).reshape(batch, count * length, heads, head_size)[:, :steps]
    return y_BTHP, leaving_state(p, angle_BTHS[:, -1], phase_BTHS[:, -1], state_BHPN, initial)


def _dual(*operands: Tensor | Masks) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = DualFn.apply(*operands)  # type: ignore[assignment]
    return out


def chunk_grid(steps: int, chunk: int, rank: int) -> tuple[int, int]:
    """(number of chunks, steps per chunk): at most chunk / rank steps, evened out to fill the last."""
    count = -(-steps // max(1, chunk // rank))
    return count, -(-steps // count)


def _split(t: Tensor, count: int, length: int) -> Tensor:
    """[B, T, ...] -> [B * count, length, ...]; steps beyond T are 0: they neither decay nor write."""
    missing = count * length - t.shape[1]
    if missing:
        t = F.pad(t, (0, 0) * (t.dim() - 2) + (0, missing))
    return t.reshape(t.shape[0] * count, length, *t.shape[2:])


def _by_head(t_BTHX: Tensor, count: int, length: int) -> Tensor:
    return _split(t_BTHX, count, length).transpose(1, 2)


def _head_matrices(matrix_BTRGN: Tensor, bias_HRN: Tensor, angle_MHRLS: Tensor) -> Tensor:
    """Each head's own matrix: that of its group, plus its bias, turned by its phase: [M, H, R, L, N]."""
    chunks, heads, _, length, _ = angle_MHRLS.shape
    groups = matrix_BTRGN.shape[3]
    matrix_MGRLN = _split(matrix_BTRGN, chunks // matrix_BTRGN.shape[0], length).permute(0, 3, 2, 1, 4).contiguous()
    bias_GHRLN = along_steps(bias_HRN, length).unflatten(0, (groups, heads // groups))
    return rotate((matrix_MGRLN[:, :, None] + bias_GHRLN).flatten(1, 2), angle_MHRLS)


def _expand_chunks(p: Prepared, count: int, length: int) -> Tensor:
    x_MHRLP = _by_head(p.x_BTHP, count, length).contiguous()[:, :, None]
    return x_MHRLP if p.mimo is None else x_MHRLP * along_steps(p.mimo.x_HRP, length)


def _sequences(packing: Packing, count: int, length: int) -> Tensor:
    sequence = packing.sequence_T
    tail = sequence[-1:].expand(count * length - sequence.numel())
    return torch.cat([sequence, tail]).view(count, length)


def _masks(packing: Packing | None, count: int, length: int, device: torch.device) -> Masks:
    before = torch.ones(length, length, dtype=torch.bool, device=device).tril(-1)
    if packing is None:
        return Masks(before[None, None], None, None)
    sequence_CL = _sequences(packing, count, length)
    previous_C = torch.cat([torch.full_like(sequence_CL[:1, -1], -1), sequence_CL[:-1, -1]])
    same = sequence_CL[:, :, None] == sequence_CL[:, None, :]
    return Masks(
        inside=(same & before)[:, None],
        entering=(sequence_CL == previous_C[:, None])[:, None],
        leaving=(sequence_CL == sequence_CL[:, -1:])[:, None],
    )
