"""The phase of the rotating state in int32 fixed-point turns, and the rotation itself.

One turn is 2**32, so that int32 overflow is the wrap modulo one turn and addition is exactly associative: the phase is
the same bit for bit whatever the chunks, the splits, or the path (scan or decode). The error against a real sum is the
rounding of each increment, at most 2**-33 turn. Rotation pairs are half-split: channel i turns with channel i + N/2,
for the first S pairs only (Mamba-3, arXiv 2603.15569, section on data-dependent rotary embeddings).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

TURN = 2**32


def quantize_turns(turns: Tensor) -> Tensor:
    """Increments in turns (float, any shape) -> int64 multiples of 2**-32 turn. Scaling by a power of two is exact."""
    return torch.round(turns * TURN).to(torch.int64)


def wrap_turns(count: Tensor) -> Tensor:
    """int64 counts of 2**-32 turn -> the int32 count in [-half a turn, half a turn)."""
    return (((count + TURN // 2) & (TURN - 1)) - TURN // 2).to(torch.int32)


def radians(phase: Tensor, dtype: torch.dtype) -> Tensor:
    """int32 turns -> radians in [-pi, pi)."""
    return phase.to(dtype) * (2 * math.pi / TURN)


def advance_phase(phase_BHS: Tensor, turns_BHS: Tensor) -> Tensor:
    """int32 phase after one more step of `turns_BHS`."""
    return wrap_turns(phase_BHS.to(torch.int64) + quantize_turns(turns_BHS))


class PhaseFn(Function):
    """int32 running phase with the gradient of the real running sum (straight through the rounding)."""

    @staticmethod
    def forward(
        ctx: Any, turns_BTHS: Tensor, initial_BHS: Tensor | None, first_T: Tensor | None, last_T: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        count = torch.cumsum(quantize_turns(turns_BTHS), 1)
        if first_T is not None:
            before = torch.cat([torch.zeros_like(count[:, :1]), count[:, :-1]], 1)
            count = count - before[:, first_T]
        if initial_BHS is not None:
            count = count + initial_BHS[:, None]
        phase = wrap_turns(count)
        ctx.last_T = last_T
        ctx.mark_non_differentiable(phase)
        return radians(phase, turns_BTHS.dtype), phase

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0]
        if ctx.last_T is None:
            return 2 * math.pi * grad.flip(1).cumsum(1).flip(1), None, None, None
        # Suffix sums of a packed row: the part behind the sequence's own end is subtracted, in fp64 so that it cancels.
        suffix = grad.double().flip(1).cumsum(1).flip(1)
        suffix = torch.cat([suffix, torch.zeros_like(suffix[:, :1])], 1)
        own = suffix[:, :-1] - suffix[:, ctx.last_T + 1]
        return (2 * math.pi * own).to(grad.dtype), None, None, None


def accumulate_phase(
    turns_BTHS: Tensor,
    *,
    initial_BHS: Tensor | None = None,
    first_T: Tensor | None = None,
    last_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Running phase of increments in turns: (radians_BTHS, int32 phase_BTHS).

    `first_T` and `last_T` give, for each token of a packed row, the first and last index of its own sequence; the phase
    restarts at zero there. The gradient with respect to `turns_BTHS` is that of the unrounded sum.
    """
    out: tuple[Tensor, Tensor] = PhaseFn.apply(turns_BTHS, initial_BHS, first_T, last_T)  # type: ignore[assignment]
    return out


def _turn(u: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """Rotate the first S half-split pairs of the last axis by sign * angle."""
    pairs, half = cos.shape[-1], u.shape[-1] // 2
    y = u.clone(memory_format=torch.contiguous_format)
    u0, u1 = u[..., :pairs], u[..., half : half + pairs]
    y0, y1 = y[..., :pairs], y[..., half : half + pairs]
    y0.mul_(cos).addcmul_(u1, sin, value=-sign)
    y1.mul_(cos).addcmul_(u0, sin, value=sign)
    return y


class RotateFn(Function):
    """Rotation with the hand-written gradient: autograd through slices and cat would copy whole tensors many times."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, angle: Tensor) -> Tensor:
        cos, sin = torch.cos(angle), torch.sin(angle)
        y = _turn(u, cos, sin, 1)
        ctx.save_for_backward(y, cos, sin)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (dy,) = grads
        y, cos, sin = ctx.saved_tensors
        pairs, half = cos.shape[-1], y.shape[-1] // 2
        first, second = slice(0, pairs), slice(half, half + pairs)
        # d angle = <dy, J y> with J the quarter turn (u0, u1) -> (-u1, u0).
        dangle = y[..., first] * dy[..., second]
        dangle.addcmul_(y[..., second], dy[..., first], value=-1)
        return _turn(dy, cos, sin, -1), dangle.sum_to_size(cos.shape)


def rotate(u: Tensor, angle: Tensor) -> Tensor:
    """Turn channels (i, i + N/2), i < S, of `u[..., N]` by `angle[..., S]` radians; leading axes broadcast."""
    return u if angle.shape[-1] == 0 else RotateFn.apply(u, angle)  # type: ignore[return-value]
