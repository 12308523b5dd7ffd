"""Levenberg-Marquardt damping: trust in the quadratic model, from what steps really gained against what it promised."""

from __future__ import annotations

import torch
from torch import Tensor

SHRINK = (19 / 20) ** 16
"""Factor of one adaption, for one adaption every 16 steps (Martens and Grosse, arXiv:1503.05671, section 6.5)."""
_TINY = 1e-30


class Damping:
    """lambda, relative to the mean curvature of a matrix; a device scalar that nothing waits for."""

    def __init__(self, start: float, low: float, high: float, device: torch.device | str = "cpu") -> None:
        if not low <= start <= high:
            raise ValueError(f"damping {start} is outside {low}..{high}")
        self.low, self.high = low, high
        self.value = torch.tensor(start, device=device)
        self.ratio = torch.full((), torch.nan, device=device)

    def to(self, device: torch.device) -> None:
        """Move the scalars."""
        self.value, self.ratio = self.value.to(device), self.ratio.to(device)

    def adapt(self, actual: Tensor, predicted: Tensor) -> None:
        """rho = actual / predicted reduction of the loss: below 1/4 raises lambda, above 3/4 lowers it.

        A model that itself promises an increase has been stepped over, and counts as rho = -1. A loss that is not
        finite raises lambda too. A promise of exactly 0 is a step that was skipped: nothing changes.
        """
        moved = predicted != 0
        ratio = torch.where(predicted > 0, actual / predicted.clamp(min=_TINY), -1.0)
        up, down = ~(ratio >= 0.25), ratio > 0.75
        factor = torch.where(up, 1 / SHRINK, torch.where(down, SHRINK, 1.0))
        self.value = torch.where(moved, self.value * factor, self.value).clamp(self.low, self.high)
        self.ratio = torch.where(moved, ratio, self.ratio)
