"""Warmup, stable, decay: the learning rate as a pure function of the step.

Linear warmup, a constant plateau, a linear decay to zero. WSD: arXiv:2404.06395; linear to zero: arXiv:2502.15938.
"""

from __future__ import annotations

import math


def phase_lengths(steps: int, warmup_share: float, decay_share: float) -> tuple[int, int]:
    """Steps of warmup (rounded up) and of decay (rounded down, and never into the warmup)."""
    warmup = math.ceil(warmup_share * steps)
    return warmup, min(math.floor(decay_share * steps), steps - warmup)


def learning_rate_scale(step: int, steps: int, warmup_share: float, decay_share: float) -> float:
    """Factor of the peak learning rate in step `step`, counted from 1 to `steps`.

    The first warmup step has 1/W and the last has 1. The decay steps go down evenly; zero would be reached by step
    `steps + 1`, so that the last step still learns. Raises ValueError outside 1..steps.
    """
    if not 1 <= step <= steps:
        raise ValueError(f"step {step} is outside 1..{steps}")
    warmup, decay = phase_lengths(steps, warmup_share, decay_share)
    if step <= warmup:
        return step / warmup
    left = steps + 1 - step
    return left / (decay + 1) if left <= decay else 1.0
