"""The Mamba-3 scan and its decode step: checks, counts, and hands over to an implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels import counters, dispatch
from sigma_kernels.counted import count_reference
from sigma_kernels.scan.checks import Sizes, check_cu_seqlens, check_inputs, check_parameters, check_state, check_valid
from sigma_kernels.scan.chunked import mamba3_scan_chunked
from sigma_kernels.scan.prepare import ScanParameters
from sigma_kernels.scan.state import Mamba3State, Mimo
from sigma_kernels.scan.step import mamba3_step_reference


def mamba3_scan(
    x_BTHP: Tensor,
    z_BTHP: Tensor,
    in_BTRGN: Tensor,
    out_BTRGN: Tensor,
    dd_dt_BTH: Tensor,
    dd_a_BTH: Tensor,
    trap_BTH: Tensor,
    angle_BTS: Tensor,
    *,
    dt_bias_H: Tensor,
    in_norm_N: Tensor,
    out_norm_N: Tensor,
    in_bias_HRN: Tensor,
    out_bias_HRN: Tensor,
    skip_H: Tensor,
    mimo: Mimo | None = None,
    y_norm_HP: Tensor | None = None,
    initial_state: Mamba3State | None = None,
    return_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    valid_BT: Tensor | None = None,
    chunk: int = 64,
) -> Tensor | tuple[Tensor, Mamba3State]:
    """Mamba-3 state-space scan, SISO or MIMO (arXiv 2603.15569): y_BTHP in the dtype of `x_BTHP`.

    Args:
        x_BTHP, z_BTHP: input and gate.
        in_BTRGN, out_BTRGN: the matrices B and C of the paper, before their norm; R = 1 for SISO; G groups of heads.
        dd_dt_BTH: dt = softplus(dd_dt + dt_bias_H), in units of time.
        dd_a_BTH: A = -f(dd_a), f the heavy tail 1 + a above 0 and 1 / (1 - a) below, at least 1e-4.
        trap_BTH: sigmoid(trap) is the weight of the trapezoid's right end.
        angle_BTS: pi * tanh(angle) radians per unit of time turn channels (i, i + N/2), i < S; S = 0 is no rotation.
        in_norm_N, out_norm_N, in_bias_HRN, out_bias_HRN: RMSNorm (eps 1e-5) over N, then the bias, then the rotation.
        skip_H: D, on the expanded x.
        mimo: the rank-R expansions; None needs R = 1.
        y_norm_HP: RMSNorm over the P channels of each head and rank, before the gate.
        initial_state: continue from here; with `cu_seqlens`, one row for each sequence.
        return_final_state: also return the state after the last valid step (of every sequence with `cu_seqlens`).
        cu_seqlens: int32 [n + 1] bounds of n sequences packed in time, B = 1; each starts from zero state and phase.
            The values are checked only when the tensor is on the host.
        valid_BT: bool; a step that is not valid leaves the whole state as it was and its y is 0. Its inputs may hold
            anything, NaN included: they reach neither an output nor a gradient, and their own gradients are 0.
        chunk: most rows (time steps x rank) of a chunk of the reference; a matter of speed only. The kernels have
            their own table.

    Computes in fp32 (fp64 for fp64 inputs), also under autocast. Raises ValueError naming the tensor whose shape or
    dtype does not fit.
    """
    inputs = (x_BTHP, z_BTHP, in_BTRGN, out_BTRGN, dd_dt_BTH, dd_a_BTH, trap_BTH, angle_BTS)
    parameters = ScanParameters(
        dt_bias_H=dt_bias_H,
        in_norm_N=in_norm_N,
        out_norm_N=out_norm_N,
        in_bias_HRN=in_bias_HRN,
        out_bias_HRN=out_bias_HRN,
        skip_H=skip_H,
        mimo=mimo,
        y_norm_HP=y_norm_HP,
    )
    sizes = check_inputs(inputs, "BT")
    check_parameters(parameters, sizes)
    batch, steps = x_BTHP.shape[:2]
    check_valid("valid_BT", valid_BT, (batch, steps))
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1, got {chunk}")
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, batch, steps)
        batch = cu_seqlens.numel() - 1
    if initial_state is not None:
        check_state("initial_state", initial_state, batch, sizes, x_BTHP)

    options = {
        "initial_state": initial_state,
        "return_final_state": return_final_state,
        "cu_seqlens": cu_seqlens,
        "valid_BT": valid_BT,
    }
    with torch.autocast(x_BTHP.device.type, enabled=False):
        if dispatch.use_triton("scan", *inputs, limit=_limit(sizes, x_BTHP)):
            from sigma_kernels.scan.triton_op import mamba3_scan_triton

            return mamba3_scan_triton(*inputs, **options, **parameters)
        out = mamba3_scan_chunked(*inputs, **options, chunk=chunk, **parameters)
    if not isinstance(out, tuple):
        return count_reference("scan", out)[0]
    y_BTHP, state = out
    return count_reference("scan", y_BTHP)[0], state


WIDEST_HEAD, WIDEST_STATE, HIGHEST_RANK = 128, 256, 4
"""What the kernels' tiles hold. Rank 8 spills thousands of bytes and does not compile for sm_100, 16 not for sm_90."""

LONGEST, LARGEST_BATCH = 2**20 - 16, 2**15 - 1
"""What a launch grid holds: 65,535 chunks of at least 16 steps, and as many rows in two parts."""


def _limit(n: Sizes, x_BTHP: Tensor) -> str | None:
    """Why the kernels do not take a scan of these sizes, or None."""
    if x_BTHP.dtype == torch.float64:
        return "fp64 is the reference's"
    if n.head_size > WIDEST_HEAD or n.state > WIDEST_STATE or n.rank > HIGHEST_RANK:
        return f"the kernels take P <= {WIDEST_HEAD}, N <= {WIDEST_STATE} and R <= {HIGHEST_RANK}"
    if x_BTHP.shape[1] > LONGEST or x_BTHP.shape[0] > LARGEST_BATCH:
        return f"the kernels take {LARGEST_BATCH:,} rows of {LONGEST:,} steps"
    return None


def mamba3_step(
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
    dt_bias_H: Tensor,
    in_norm_N: Tensor,
    out_norm_N: Tensor,
    in_bias_HRN: Tensor,
    out_bias_HRN: Tensor,
    skip_H: Tensor,
    mimo: Mimo | None = None,
    y_norm_HP: Tensor | None = None,
    valid_B: Tensor | None = None,
) -> Tensor:
    """One token of `mamba3_scan`: returns y_BHP and overwrites the tensors of `state` with the state after it.

    The arguments are those of the scan without the time axis. A row that is not valid keeps its state and gets y = 0.
    On CUDA one Triton launch, which reads columns of a wider projection in place and may be captured in a CUDA graph;
    elsewhere the reference. Counts `scan.step`. Not differentiable. Raises ValueError naming the tensor whose shape or
    dtype does not fit.
    """
    inputs = (x_BHP, z_BHP, in_BRGN, out_BRGN, dd_dt_BH, dd_a_BH, trap_BH, angle_BS)
    parameters = ScanParameters(
        dt_bias_H=dt_bias_H,
        in_norm_N=in_norm_N,
        out_norm_N=out_norm_N,
        in_bias_HRN=in_bias_HRN,
        out_bias_HRN=out_bias_HRN,
        skip_H=skip_H,
        mimo=mimo,
        y_norm_HP=y_norm_HP,
    )
    sizes = check_inputs(inputs, "B")
    check_parameters(parameters, sizes)
    check_valid("valid_B", valid_B, (x_BHP.shape[0],))
    check_state("state", state, x_BHP.shape[0], sizes, x_BHP)
    counters.add("scan.step")
    learned = [dt_bias_H, in_norm_N, out_norm_N, in_bias_HRN, out_bias_HRN, skip_H, y_norm_HP, valid_B]
    learned += [] if mimo is None else list(vars(mimo).values())
    tensors = [*inputs, *vars(state).values(), *(t for t in learned if t is not None)]
    if dispatch.use_triton("scan.step", *tensors):
        from sigma_kernels.scan.step_kernel import launch_step

        return launch_step(state, inputs, valid_B, parameters)
    with torch.autocast(x_BHP.device.type, enabled=False):
        return mamba3_step_reference(state, *inputs, valid_B=valid_B, **parameters)
