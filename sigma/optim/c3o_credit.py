"""Credit of each block of a model, measured across batches, and the share of the update that follows from it.

Block b takes the step `theta_b -= rho_b u_b` with rho_b = lr s_b. The question is how much lower the loss would be, had
the block taken a little more of it: the slope <g_b, u_b>. The gradient that made `u_b` would answer with its own noise,
so only gradients of later batches count:

    a = <g(theta_(t+1)), u>            slope once the step was taken,
    q = <g(theta_t), u>                slope before it, on the same later batch as a,
    q - a = rho kappa                  bend of the loss along u; most of the noise of the batch is in both and cancels.

A quadratic wants the step rho q / (q - a) = rho + a / kappa (its secant optimum). Slopes and bends are averaged apart.
The sum of the slopes over blocks and steps is the loss change allocation of arXiv:1909.01440.

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
_SPREAD = math.log(2) ** 2
"""Variance of log s between blocks that is expected before anything is known."""
_CERTAINTY = 16.0
"""Nothing follows from an optimum whose logarithm has a standard error above a quarter: 1 / sqrt of this."""
_FURTHEST = 1000.0
_BISECTIONS = 40
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
    """One measurement, every field `[blocks]`: slope a, bend q - a, rho = lr s of the step, s alone, |u|^2."""

    slope: Tensor
    bend: Tensor
    rate: Tensor
    share: Tensor
    energy: Tensor


class Credit:
    """Averages of the probes of `blocks` blocks, and the scale s_b of each. They stay where a CUDA graph found them."""

    def __init__(self, blocks: int, settings: CreditSettings, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        zero = torch.zeros(blocks, device=device)
        self.log_scale, self.rate, self.share = zero, zero.clone(), zero.clone()
        self.slope, self.slope_power = zero.clone(), zero.clone()
        self.bend, self.bend_power = zero.clone(), zero.clone()
        self.mass = torch.zeros((), device=device)

    def observe(self, probe: Probe, low: Tensor, high: Tensor, valid: Tensor) -> None:
        """Take one probe in and move the scales; `low` and `high` are bounds of s from `trust_bounds`.

        Nothing changes where the 0/1 scalar `valid` is 0 (a step of the probe was skipped).
        """
        seen = {
            "slope": probe.slope,
            "slope_power": probe.slope.square(),
            "bend": probe.bend,
            "bend_power": probe.bend.square(),
            "rate": probe.rate,
            "share": probe.share,
            "mass": torch.ones_like(self.mass),
        }
        for name, value in seen.items():
            old = getattr(self, name)
            old.copy_(torch.where(valid.bool(), torch.lerp(value, old, self.settings.ema), old))
        wanted = torch.lerp(self.log_scale, self.target(probe.energy), self.settings.gain)
        bounds = math.log(self.settings.scale_min), math.log(self.settings.scale_max)
        moved = neutral(wanted, probe.energy, low.log().clamp(min=bounds[0]), high.log().clamp(max=bounds[1]))
        self.log_scale.copy_(torch.where(valid.bool(), moved, self.log_scale))

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """(slope a, bend rho kappa, rate rho), averaged over the probes."""
        mass = self.mass.clamp(min=_TINY)
        return self.slope / mass, self.bend / mass, self.rate / mass

    def optimum(self) -> Tensor:
        """Optimal step in units of the one taken: 1 + a / (rho kappa), within a factor of 1000.

        Meaningless where the loss does not bend up.
        """
        slope, bend, _ = self.means()
        return (1 + slope / bend.clamp(min=_TINY)).clamp(1 / _FURTHEST, _FURTHEST)

    def uncertainty(self) -> Tensor:
        """Variance of the logarithm of the optimum, from the spread between probes.

        log(a + bend) - log(bend) by the delta method. Where the loss bends down, that of log a and of log |bend|: then
        the optimum is far ahead for certain only if both are certain.
        """
        slope, bend, _ = self.means()
        mass = self.mass.clamp(min=_TINY)
        share = (1 - self.settings.ema) / (1 + self.settings.ema) / mass  # variance of an average, of that of a probe
        slope_variance = share * (self.slope_power / mass - slope.square()).clamp(min=0)
        bend_variance = share * (self.bend_power / mass - bend.square()).clamp(min=0)
        q_square = (slope + bend).square().clamp(min=_TINY)
        convex = (slope_variance + bend_variance * (slope / bend.clamp(min=_TINY)).square()) / q_square
        relative = slope_variance / slope.square().clamp(min=_TINY) + bend_variance / bend.square().clamp(min=_TINY)
        return torch.where(bend > 0, convex, relative)

    def reliability(self) -> Tensor:
        """Weight in 0..1 of what the averages ask for: 0 while that is known to no better than a quarter."""
        return (1 - (_CERTAINTY * self.uncertainty()).square()).clamp(min=0) * self.mass

    def target(self, energy: Tensor) -> Tensor:
        """log s that the averages ask for, shrunk by reliability, relative to the mean over the blocks."""
        s, (slope, bend, _) = self.settings, self.means()
        # of log s, not of the rate: blocks may have learning rates of their own
        wanted = (self.optimum() * self.share / self.mass.clamp(min=_TINY)).clamp(min=_TINY).log()
        # squared: the logarithm of an unsure optimum has heavy tails
        weight = energy * (bend > 0) / (_SPREAD + self.uncertainty()).square()
        wanted = wanted - (weight * wanted).sum() / weight.sum().clamp(min=_TINY)
        # no minimum ahead: as much as is allowed if the slope leads down, as before if it does not
        outlook = torch.where(slope > 0, math.log(s.scale_max), 0.0)
        # twice the bounds of s: where only some blocks are certain, the budget takes half of what they ask for
        span = math.log(s.scale_max / s.scale_min)
        wanted = torch.where(bend > 0, wanted, outlook).clamp(-span, span)
        return self.reliability() * wanted

    def predicted_loss(self, rate: Tensor) -> Tensor:
        """Rise of the loss if the step `rate` u of a block were taken back: rate a + rate^2 kappa / 2."""
        slope, bend, mean_rate = self.means()
        return rate * slope + rate.square() * bend / mean_rate.clamp(min=_TINY) / 2

    def scale(self) -> Tensor:
        """s_b, with sum_b energy_b log s_b = 0."""
        return self.log_scale.exp()

    def state_dict(self) -> dict[str, list[float] | float]:
        """Every average as JSON. Waits for the device."""
        return {name: getattr(self, name).tolist() for name in STATE}

    def load_state_dict(self, state: Mapping[str, list[float] | float]) -> None:
        """Restore `state_dict`."""
        for name in STATE:
            getattr(self, name).copy_(torch.tensor(state[name]))


STATE = ("log_scale", "rate", "share", "slope", "slope_power", "bend", "bend_power", "mass")


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
