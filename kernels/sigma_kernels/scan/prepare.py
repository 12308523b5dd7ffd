"""From the layer's projections to the coefficients of the recurrence; shared by the oracle, the chunks and the step.

Mamba-3 (arXiv 2603.15569), exponential-trapezoidal rule, per head and step, with lambda = sigmoid(trap):

    h_t = alpha_t h_{t-1} + beta_t k_{t-1} x_{t-1}^T + gamma_t k_t x_t^T        y_t = q_t^T h_t + D x_t
    alpha = exp(dt A)      beta = (1 - lambda) dt alpha      gamma = lambda dt

k and q are the RMS-normalised, biased matrices turned by the running phase sum dt * pi * tanh(angle).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma_kernels.scan.state import Mimo

NORM_EPS = 1e-5
DECAY_FLOOR = 1e-4


class ScanParameters(TypedDict):
    """The layer's learned tensors, as keyword arguments of every form of the scan."""

    dt_bias_H: Tensor
    in_norm_N: Tensor  # RMSNorm weights of the input and output matrices, shared by ranks and groups
    out_norm_N: Tensor
    in_bias_HRN: Tensor  # added after the norm, before the rotation
    out_bias_HRN: Tensor
    skip_H: Tensor  # D: y += D * X, on the expanded x
    mimo: NotRequired[Mimo | None]  # None is SISO, R = 1
    y_norm_HP: NotRequired[Tensor | None]  # weight of the RMSNorm before the gate; None is no norm


@dataclass(frozen=True)
class Prepared:
    """One scan in its compute dtype. A padded step has x = z = 0 and dt = 0: it neither decays, writes nor turns."""

    x_BTHP: Tensor
    z_BTHP: Tensor
    in_BTRGN: Tensor  # normalised
    out_BTRGN: Tensor  # normalised
    log_decay_BTH: Tensor  # dt * A <= 0
    gamma_BTH: Tensor  # weight of the right end, lambda * dt
    left_BTH: Tensor  # weight of the left end before its decay, (1 - lambda) * dt
    turns_BTHS: Tensor  # phase increment in turns
    in_bias_HRN: Tensor
    out_bias_HRN: Tensor
    skip_H: Tensor
    mimo: Mimo | None
    y_norm_HP: Tensor | None
    valid_BT: Tensor | None


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp64 stays fp64; everything else is computed in fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def heavy_tail(a: Tensor) -> Tensor:
    """f(a) = 1 + a for a >= 0, 1 / (1 - a) below: positive, smooth at 0, and never exponentially small."""
    # The clamp keeps the unused branch of `where` finite at a = 1, where its gradient would turn to NaN.
    return torch.where(a >= 0, 1 + a, 1 / (1 - a.clamp(max=0)))


@dataclass(frozen=True)
class Coefficients:
    """The recurrence's numbers per head and step, [B, T, H] in the compute dtype; all 0 in a padded step."""

    dt_BTH: Tensor
    log_decay_BTH: Tensor  # dt * A <= 0
    gamma_BTH: Tensor  # weight of the right end, lambda * dt
    left_BTH: Tensor  # weight of the left end before its decay, (1 - lambda) * dt


def clean(t: Tensor, valid_BT: Tensor | None) -> Tensor:
    """`t` [B, T, ...] with 0 in padded steps, by `where`: NaN there must reach neither the output nor a gradient."""
    return t if valid_BT is None else torch.where(valid_BT.view(*valid_BT.shape, *[1] * (t.dim() - 2)), t, 0)


def coefficients(
    dd_dt_BTH: Tensor, dd_a_BTH: Tensor, trap_BTH: Tensor, dt_bias_H: Tensor, valid_BT: Tensor | None
) -> Coefficients:
    """From the control projection, already cleaned and in the compute dtype."""
    dt_BTH = clean(F.softplus(dd_dt_BTH + dt_bias_H.to(dd_dt_BTH.dtype)), valid_BT)
    return Coefficients(
        dt_BTH=dt_BTH,
        log_decay_BTH=dt_BTH * -heavy_tail(dd_a_BTH).clamp(min=DECAY_FLOOR),
        gamma_BTH=torch.sigmoid(trap_BTH) * dt_BTH,
        left_BTH=torch.sigmoid(-trap_BTH) * dt_BTH,
    )


def half_turns(angle_BTS: Tensor) -> Tensor:
    """pi * tanh(angle) radians per unit of time are tanh(angle) / 2 turns: no rounding of pi enters the phase."""
    return torch.tanh(angle_BTS) * 0.5


def prepare(
    x_BTHP: Tensor,
    z_BTHP: Tensor,
    in_BTRGN: Tensor,
    out_BTRGN: Tensor,
    dd_dt_BTH: Tensor,
    dd_a_BTH: Tensor,
    trap_BTH: Tensor,
    angle_BTS: Tensor,
    *,
    valid_BT: Tensor | None,
    **parameters: Unpack[ScanParameters],
) -> Prepared:
    """Cast to the compute dtype, blank the padding, and form every coefficient of the recurrence."""
    dtype = compute_dtype(x_BTHP)
    mimo, y_norm_HP = parameters.get("mimo"), parameters.get("y_norm_HP")
    matrix = in_BTRGN.shape[-1:]

    def cast(t: Tensor) -> Tensor:
        return clean(t.to(dtype), valid_BT)

    numbers = coefficients(cast(dd_dt_BTH), cast(dd_a_BTH), cast(trap_BTH), parameters["dt_bias_H"], valid_BT)
    return Prepared(
        x_BTHP=cast(x_BTHP),
        z_BTHP=cast(z_BTHP),
        in_BTRGN=F.rms_norm(cast(in_BTRGN), matrix, parameters["in_norm_N"].to(dtype), NORM_EPS),
        out_BTRGN=F.rms_norm(cast(out_BTRGN), matrix, parameters["out_norm_N"].to(dtype), NORM_EPS),
        log_decay_BTH=numbers.log_decay_BTH,
        gamma_BTH=numbers.gamma_BTH,
        left_BTH=numbers.left_BTH,
        turns_BTHS=numbers.dt_BTH[..., None] * half_turns(cast(angle_BTS))[:, :, None],
        in_bias_HRN=parameters["in_bias_HRN"].to(dtype),
        out_bias_HRN=parameters["out_bias_HRN"].to(dtype),
        skip_H=parameters["skip_H"].to(dtype),
        mimo=None if mimo is None else Mimo(mimo.x_HRP.to(dtype), mimo.z_HRP.to(dtype), mimo.out_HRP.to(dtype)),
        y_norm_HP=None if y_norm_HP is None else y_norm_HP.to(dtype),
        valid_BT=valid_BT,
    )


def per_head(matrix_BRGN: Tensor, bias_HRN: Tensor) -> Tensor:
    """Give each head the matrix of its group plus its own bias: [B, R, G, N] -> [B, H, R, N]."""
    heads, groups = bias_HRN.shape[0], matrix_BRGN.shape[-2]
    return matrix_BRGN.transpose(1, 2).repeat_interleave(heads // groups, dim=1) + bias_HRN


def expand_x(x_BHP: Tensor, mimo: Mimo | None) -> Tensor:
    """X[r] = x * psi[r]: [B, H, P] -> [B, H, R, P] (R = 1 without MIMO)."""
    return x_BHP[:, :, None] if mimo is None else x_BHP[:, :, None] * mimo.x_HRP


def along_steps(weight_HRX: Tensor, steps: int) -> Tensor:
    """[H, R, X] -> [H, R, L, X]. An expansion of its own splits the gradient's sum in two, which is faster."""
    return weight_HRX[:, :, None].expand(-1, -1, steps, -1)
