"""The state-space dual form of one chunked scan, with its gradient written out.

Inside a chunk of L steps, g = cumsum(log decay), and with k, q turned by the running phase (Mamba-3, arXiv 2603.15569):

    Y = [W o (Q K^T) + D] X + e^g o (Q S^T)          W_ij = e^{g_i - g_j} scale_j (i > j), gamma_i (i = j), else 0
    S <- e^{g_L} S + (e^{g_L - g} o scale o X)^T K

MIMO flattens rank and time into R*L rows, rank outside, under the mask of the time steps; the R x R block of one step
is weighted by gamma. Every exponent is <= 0. The gradient is by hand: autograd returns the gradient of a transposed
operand transposed, so that later passes run against the memory order, and keeps more (measured: 1.3 times the time).

Axes: M chunks of all rows of the batch (B * C), H heads, R rank, L steps, P head size, N state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Masks:
    """Which steps see which: bool [C or 1, 1, L, L] and [C or 1, 1, L], the same for all heads and rows."""

    inside: Tensor  # j strictly before i, in the same sequence
    entering: Tensor | None  # the step belongs to the sequence that enters the chunk; None means all
    leaving: Tensor | None  # the step belongs to the sequence that leaves the chunk; None means all


def _running_sum(log_decay: Tensor, masks: Masks) -> Tensor:
    """g_i: the sum over the steps of i's own sequence up to i, so that no rounding error of one reaches the next.

    In fp64, which no setting turns into TF32.
    """
    inside = masks.inside[:, 0].double()
    return (inside @ log_decay.double().mT).mT.to(log_decay.dtype) + log_decay


def _running_sum_gradient(dg: Tensor, masks: Masks) -> Tensor:
    return (dg.double() @ masks.inside[:, 0].double()).to(dg.dtype) + dg


def _decays(g: Tensor, masks: Masks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(e^{g_i - g_j}, e^{g_i}, e^{g_L - g_j}, e^{g_L}) under the masks, each in [0, 1]."""
    inside = (g[..., :, None] - g[..., None, :]).masked_fill_(~masks.inside, -torch.inf).exp_()
    enter, leave = g, g[..., -1:] - g
    if masks.entering is not None and masks.leaving is not None:
        enter, leave = enter.masked_fill(~masks.entering, -torch.inf), leave.masked_fill(~masks.leaving, -torch.inf)
    enter = enter.exp()
    return inside, enter, leave.exp(), enter[..., -1]


def _weights(inside: Tensor, scale: Tensor, gamma: Tensor) -> Tensor:
    weight = inside * scale[..., None, :]
    weight.diagonal(dim1=-2, dim2=-1).copy_(gamma)
    return weight


def _mix(dots: Tensor, weight: Tensor, skip_H: Tensor) -> Tensor:
    """[W o (Q K^T) + D] over the R*L rows."""
    mix_MHRLRL = dots * weight[:, :, None, :, None, :]
    mix = mix_MHRLRL.flatten(4, 5).flatten(2, 3)
    mix.diagonal(dim1=-2, dim2=-1).add_(skip_H[:, None])
    return mix.flatten(0, 1)


def _pass_states(update: Tensor, across: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """S <- across * S + update over the C chunks: (states before each chunk, state after the last)."""
    batch, shape = initial.shape[0], update.shape
    update = update.view(batch, -1, *initial.shape[1:])
    across = across.reshape(batch, -1, *initial.shape[1:2], 1, 1)
    starts, state = torch.empty_like(update), initial
    for c in range(update.shape[1]):
        starts[:, c] = state
        state = torch.addcmul(update[:, c], across[:, c], state)
    return starts.view(shape), state


def _pass_gradients(dstarts: Tensor, across: Tensor, dfinal: Tensor) -> tuple[Tensor, Tensor]:
    """The same pass backward: (gradients of the states after each chunk, gradient of the initial state)."""
    batch, shape = dfinal.shape[0], dstarts.shape
    dstarts = dstarts.view(batch, -1, *dfinal.shape[1:])
    across = across.reshape(batch, -1, *dfinal.shape[1:2], 1, 1)
    dafter, dstate = torch.empty_like(dstarts), dfinal
    for c in reversed(range(dstarts.shape[1])):
        dafter[:, c] = dstate
        dstate = torch.addcmul(dstarts[:, c], across[:, c], dstate)
    return dafter.view(shape), dstate


def _rows(t: Tensor) -> Tensor:
    """[M, H, R, L, X] -> the batch of matrices [M*H, R*L, X]."""
    return t.reshape(t.shape[0] * t.shape[1], t.shape[2] * t.shape[3], t.shape[4])


def _per_step(t_MHL: Tensor) -> Tensor:
    return t_MHL[:, :, None, :, None]


def _over_ranks(t_MHRLRL: Tensor) -> Tensor:
    """Sum both rank axes, one at a time: reducing both at once is many times slower on CPU."""
    return t_MHRLRL[:, :, 0, :, 0] if t_MHRLRL.shape[2] == 1 else t_MHRLRL.sum(2).sum(3)


class DualFn(Function):
    """One chunked scan; see the head of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        x: Tensor,
        log_decay: Tensor,
        scale: Tensor,
        gamma: Tensor,
        skip_H: Tensor,
        initial: Tensor,
        masks: Masks,
    ) -> tuple[Tensor, Tensor]:
        inside, enter, leave, across = _decays(_running_sum(log_decay, masks), masks)
        q, k, v = _rows(query), _rows(key), _rows(x)
        rank, steps = x.shape[2:4]
        dots = torch.bmm(q, k.mT).view(*x.shape[:2], rank, steps, rank, steps)
        update = torch.bmm(_rows(x * _per_step(leave * scale)).mT, k)
        starts, final = _pass_states(update, across, initial)
        y = torch.bmm(q, starts.mT)
        y.view(x.shape).mul_(_per_step(enter))
        y.baddbmm_(_mix(dots, _weights(inside, scale, gamma), skip_H), v)
        ctx.masks = masks
        ctx.save_for_backward(query, key, x, scale, gamma, skip_H, dots, inside, enter, leave, starts)
        return y.view(x.shape), final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: activation checkpointing allows no second read
        query, key, x = saved[:3]
        with torch.autocast(x.device.type, enabled=False):  # backward may be called inside the caller's autocast
            dq, dk, dx, dg, *rest = _backward(*saved, *grads)
            dlog_decay = _running_sum_gradient(dg, ctx.masks)
        return dq.view_as(query), dk.view_as(key), dx.view_as(x), dlog_decay, *rest, None


def _backward(
    query: Tensor,
    key: Tensor,
    x: Tensor,
    scale: Tensor,
    gamma: Tensor,
    skip_H: Tensor,
    dots: Tensor,
    inside: Tensor,
    enter: Tensor,
    leave: Tensor,
    starts: Tensor,
    dy: Tensor,
    dfinal: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of query, key, x, g, scale, gamma, skip and initial; products add into them in place."""
    q, k, v, across = _rows(query), _rows(key), _rows(x), enter[..., -1]
    leaving = _per_step(leave * scale)

    # Through the states: y += e^g (Q S^T), S <- across S + X_leaving^T K.
    dy_entering = _rows(dy * _per_step(enter))
    dafter, dinitial = _pass_gradients(torch.bmm(dy_entering.mT, q), across, dfinal)
    dq = torch.bmm(dy_entering, starts)
    dx_leaving = torch.bmm(k, dafter.mT)
    enter_denter = _row_dots(q, dq, x.shape)
    scale_dleave = _row_dots(v, dx_leaving, x.shape)
    across_dacross = (starts * dafter).sum((-2, -1)).view(across.shape) * across

    # Inside the chunk: y += mix X, mix = W o (Q K^T) + D.
    weight = _weights(inside, scale, gamma)
    dx = torch.bmm(_mix(dots, weight, skip_H).mT, _rows(dy))
    dx.view(x.shape).addcmul_(dx_leaving.view(x.shape), leaving)
    dmix = torch.bmm(_rows(dy), v.mT)
    dskip = dmix.diagonal(dim1=-2, dim2=-1).sum(-1).view(across.shape).sum(0)
    dweight = _over_ranks(dmix.view(dots.shape) * dots)
    ddots = dmix.view(dots.shape).mul_(weight[:, :, None, :, None, :]).view(dmix.shape)
    dq.baddbmm_(ddots, k)
    dk = torch.bmm(ddots.mT, q).baddbmm_(_rows(x * leaving), dafter)

    dg, dscale, dgamma = _backward_weights(dweight, inside, scale)
    dscale += leave * scale_dleave
    dg_leave = leave * scale * scale_dleave
    dg += enter_denter - dg_leave
    dg[..., -1] += dg_leave.sum(-1) + across_dacross
    return dq, dk, dx, dg, dscale, dgamma, dskip, dinitial


def _row_dots(a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """<a, b> of every step, over the ranks and the last axis: [M, H, L]."""
    return (a * b).sum(-1).view(shape[:-1]).sum(2)


def _backward_weights(dweight: Tensor, inside: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of g, scale and gamma through `_weights`; overwrites `dweight`."""
    dgamma = dweight.diagonal(dim1=-2, dim2=-1).clone()
    dinside = dweight.mul_(inside)  # strictly lower: `inside` is 0 on the diagonal
    dscale = dinside.sum(-2)
    return (dinside @ scale[..., None])[..., 0] - dscale * scale, dscale, dgamma
