"""Credit of each block of a model, measured across batches, and the share of the update that follows from it.

Block b takes the step `theta_b -= rho_b u_b` with rho_b = lr s_b. The question is how much lower the loss would be, had
the block taken a little more of it: the slope <g_b, u_b>. The gradient that made `u_b` would answer with its own noise,
so only gradients of later batches count. Every probe keeps u of one step and reads, at the two steps after it,

    a = <g_(t+1), u>          slope once the step was taken,
    b = <g_(t+2), u>          slope one more step on, which moved by c = <rho' u', u> / |u|^2 along u,
    kappa = (a - b) / c       curvature along u.

The slope before the step was a + rho kappa, so the step that a quadratic wants is rho + a / kappa (its secant optimum).
Numerators and denominators are averaged over the probes apart. The sum of the slopes over the blocks and steps is the
loss change allocation of arXiv:1909.01440.

Only the *shares* of the blocks follow from this. The common factor belongs to the schedule: a greedy line search
shortens the step too early (arXiv:1803.02021), and removing the common factor removes most of that bias.
All values are device tensors `[blocks]`, and nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_UPDATE_WEIGHT_FLOOR = 0.35
"""Smallest relative update, in units of the learning rate, to which a block may be throttled."""
_BISECTIONS = 40
_FURTHEST = 1000.0
_TINY = 1e-30


@dataclass(frozen=True)
class CreditSettings:
    """How fast credit is averaged and followed, and how far it may go.

    `ema` is the weight of the past in the averages over probes, `gain` the step of log s towards its target,
    `scale_min` and `scale_max` bound s, `trust_radius` bounds |lr s u| / max(|W|, sqrt(rows)) where s is above 1.
    """

    ema: float = 0.95
    gain: float = 0.05
    scale_min: float = 0.5
    scale_max: float = 2.0
    trust_radius: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.scale_min <= 1 <= self.scale_max:
            raise ValueError(f"scale bounds {self.scale_min}..{self.scale_max} must enclose 1")


@dataclass
class Probe:
    """One measurement, every field `[blocks]`: slopes a and b, the way c along u, rho of the step, |u|^2."""

    slope: Tensor
    next_slope: Tensor
    moved: Tensor
    rate: Tensor
    energy: Tensor


class Credit:
    """Averages of the probes of `blocks` blocks, and the scale s_b of each."""

    def __init__(self, blocks: int, settings: CreditSettings, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        zero = torch.zeros(blocks, device=device)
        self.log_scale, self.slope, self.slope_power = zero, zero.clone(), zero.clone()
        self.drop, self.drop_power, self.moved, self.rate = zero.clone(), zero.clone(), zero.clone(), zero.clone()
        self.mass = torch.zeros((), device=device)

    def observe(self, probe: Probe, low: Tensor, high: Tensor, valid: Tensor) -> None:
        """Take one probe in and move the scales; `low` and `high` are bounds of s from `trust_bounds`.

        Nothing changes where the 0/1 scalar `valid` is 0 (a step of the probe was skipped).
        """
        drop = probe.slope - probe.next_slope
        seen = {
            "slope": probe.slope,
            "slope_power": probe.slope.square(),
            "drop": drop,
            "drop_power": drop.square(),
            "moved": probe.moved,
            "rate": probe.rate,
            "mass": torch.ones_like(self.mass),
        }
        for name, value in seen.items():
            old = getattr(self, name)
            setattr(self, name, torch.where(valid.bool(), torch.lerp(value, old, self.settings.ema), old))
        moved_scale = self._followed(probe.energy, low, high)
        self.log_scale = torch.where(valid.bool(), moved_scale, self.log_scale)

    def curvature(self) -> Tensor:
        """kappa: second derivative of the loss along u, 0 where the probes never moved along it."""
        return torch.where(self.moved > 0, self.drop / self.moved.clamp(min=_TINY), 0.0)

    def reliability(self) -> Tensor:
        """Weight in 0..1: how far the slope and the curvature stand out of their noise.

        The slope against the variance of a single probe, the curvature against three standard errors of its mean.
        """
        share = (1 - self.settings.ema) / (1 + self.settings.ema)
        mass = self.mass.clamp(min=_TINY)
        slope, drop = self.slope / mass, self.drop / mass
        slope_variance = (self.slope_power / mass - slope.square()).clamp(min=0)
        drop_variance = (self.drop_power / mass - drop.square()).clamp(min=0)
        of_slope = slope.square() / (slope.square() + slope_variance + _TINY)
        of_drop = drop.square() / (drop.square() + 9 * share * drop_variance + _TINY)
        return of_slope * of_drop * (self.moved > 0) * self.mass

    def optimal_rate(self) -> Tensor:
        """rho + a / kappa, within a factor of 1000 of rho; meaningless where the curvature is not positive."""
        mass = self.mass.clamp(min=_TINY)
        slope, rate = self.slope / mass, self.rate / mass
        ratio = 1 + slope / (rate * self.curvature()).clamp(min=_TINY)
        return rate * ratio.clamp(1 / _FURTHEST, _FURTHEST)

    def predicted_loss(self, rate: Tensor) -> Tensor:
        """By how much the loss would rise if the step `rate` u of a block were taken back: rho a + rho^2 kappa / 2."""
        return rate * self.slope / self.mass.clamp(min=_TINY) + rate.square() * self.curvature() / 2

    def scale(self) -> Tensor:
        """s_b, with sum_b energy_b log s_b = 0."""
        return self.log_scale.exp()

    def _target(self, energy: Tensor) -> Tensor:
        """log s that the averages ask for, before it is shrunk: relative to the mean over the reliable blocks."""
        s, convex = self.settings, self.curvature() > 0
        wanted = self.optimal_rate().clamp(min=_TINY).log()
        share = self.reliability() * energy * convex
        wanted = wanted - (share * wanted).sum() / share.sum().clamp(min=_TINY)
        # no minimum ahead: as much as is allowed if the slope leads down, as before if it does not
        outlook = torch.where(self.slope > 0, math.log(s.scale_max), 0.0)
        return torch.where(convex, wanted, outlook).clamp(math.log(s.scale_min), math.log(s.scale_max))

    def _followed(self, energy: Tensor, low: Tensor, high: Tensor) -> Tensor:
        s = self.settings
        wanted = torch.lerp(self.log_scale, self.reliability() * self._target(energy), s.gain)
        return neutral(
            wanted, energy, low.log().clamp(min=math.log(s.scale_min)), high.log().clamp(max=math.log(s.scale_max))
        )

    def state_dict(self) -> dict[str, list[float] | float]:
        """Every average as JSON. Waits for the device."""
        return {name: getattr(self, name).tolist() for name in STATE}

    def load_state_dict(self, state: Mapping[str, list[float] | float]) -> None:
        """Restore `state_dict`."""
        for name in STATE:
            old = getattr(self, name)
            setattr(self, name, torch.tensor(state[name], dtype=old.dtype, device=old.device))


STATE = ("log_scale", "slope", "slope_power", "drop", "drop_power", "moved", "rate", "mass")


def neutral(log_scale: Tensor, energy: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """clip(log_scale - delta, low, high) with the delta for which the mean weighted by `energy` is zero.

    Needs low <= 0 <= high; then there is such a delta, and bisection finds it.
    """
    span = log_scale.abs().max() + torch.maximum(low.abs().max(), high.abs().max())
    below, above = -span, span.clone()
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        excess = (energy * torch.clamp(log_scale - middle, low, high)).sum() > 0
        below, above = torch.where(excess, middle, below), torch.where(excess, above, middle)
    return torch.clamp(log_scale - (below + above) / 2, low, high)


def trust_bounds(
    weight_norm: Tensor, update_norm: Tensor, rows: Tensor, lr: Tensor, trust_radius: float
) -> tuple[Tensor, Tensor]:
    """Smallest and largest s_b that keep the relative update |lr s u| / max(|W|, sqrt(rows)) in its range.

    The range is 0.35 lr to `trust_radius`; sqrt(rows) is the norm of a fresh matrix, so that a zero one can move.
    1 is always allowed: the step of the base optimizer is its own business.
    """
    reach = torch.maximum(weight_norm, rows.sqrt()) / update_norm.clamp(min=_TINY)
    return (_UPDATE_WEIGHT_FLOOR * reach).clamp(max=1.0), (trust_radius / lr * reach).clamp(min=1.0)
