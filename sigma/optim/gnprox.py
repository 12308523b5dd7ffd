"""GNProx: a damped Gauss-Newton step inside an operator-norm ball, with a proximal weight decay.

    Z = (Q_b^T U Q_a) / (mean(H) (H / mean(H) + lambda)^p),    D = ball(Q_b Z Q_a^T),    W <- (W - lr D) / (1 + lr w)

The curvature H is measured with labels drawn from the model (`curvature.py`, `gnprox_statistics.py`), p follows the
signal-to-noise ratio of the gradients, lambda the ratio of real to promised reduction (`damping.py`). Sources:
Kronecker factors and damping arXiv:1503.05671, diagonal arXiv:1806.03884, exponent arXiv:2510.13680.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.optim.blocks import BlockBatch
from sigma.optim.damping import Damping
from sigma.optim.gnprox_math import clip_singular_values, damped_step, noise_exponent, quadratic_term
from sigma.optim.gnprox_statistics import INPUT_BASIS, OUTPUT_BASIS, CurvatureStatistics
from sigma.optim.matrix import MOMENTUM, MOMENTUM_SCALE, UPDATE_RMS, Eager, Step, Update, rms_factor
from sigma.optim.muon import Muon
from sigma_kernels.matrix_step.codes import decode_int8

OVERLAP, ENERGY = "gn_overlap", "gn_energy"
NOISE_BETA = 0.95
_TINY = 1e-30


class GNProx(Muon):
    """The direction of GNProx. Until curvature has been measured it is Muon's: H is constant."""

    dtype = torch.float32
    prox = True

    def __init__(self, optim: OptimSection, curvature: CurvatureSection) -> None:
        super().__init__(optim)
        self.statistics = CurvatureStatistics(curvature.gn_beta2)
        self.damping = Damping(curvature.gn_damping, curvature.gn_damping_min, curvature.gn_damping_max)
        self._mode, self._exponent, self._momentum = curvature.gn_mode, curvature.gn_exponent, optim.muon_momentum
        self._noise_aware = curvature.gn_noise_aware
        self._interval = curvature.gn_damping_interval
        self._slopes: dict[int, Tensor] = {}
        self._powers: dict[int, Tensor] = {}

    def prepare(self, batch: BlockBatch) -> None:
        """Statistics, and what the noise of the gradients is estimated from."""
        super().prepare(batch)
        self.statistics.prepare(batch)
        for slot in (OVERLAP, ENERGY):
            batch.new_state(slot, (), torch.float32)
        self.damping.to(batch.device)

    def measures(self, step: int) -> bool:
        """Whether the reduction of the loss in `step` is to be measured."""
        return step % self._interval == 0

    def __call__(self, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
        """The step inside the ball; keeps the gradients of a step whose reduction will be measured."""
        gradients_KMN = batch.gradients()
        if self.measures(step.number):
            self._slopes[id(batch)] = step.unclipped(gradients_KMN)
        power = self._powers[id(batch)] = self._power(batch, gradients_KMN, step)
        newton_KMN = damped_step(
            averaged_KMN, self.statistics.diagonal(batch), *_bases(batch), self.damping.value, power
        )
        return self._inside(batch, newton_KMN, step)

    def _inside(self, batch: BlockBatch, newton_KMN: Tensor, step: Step) -> Update:
        if self._mode == "polar":
            return super().__call__(batch, newton_KMN, step)
        if self._mode == "newton":
            norm = torch.linalg.vector_norm(newton_KMN, dim=(1, 2), keepdim=True).clamp(min=_TINY)
            return Update(newton_KMN, UPDATE_RMS * math.sqrt(batch.rows * batch.columns), 1 / norm)
        factor = rms_factor(batch.rows, batch.columns)
        radius = (batch.lr * factor).float().clamp(min=_TINY)
        unbiased_KMN = newton_KMN / self._mass(step.number)  # here the length counts
        return Update(clip_singular_values(unbiased_KMN / radius), factor)

    def _mass(self, steps: int) -> float:
        """Sum of the weights of all gradients in the averaged one."""
        average = 1 - self._momentum**steps
        return average if self.form == "average" else 1 - self._momentum + self._momentum * average

    def _power(self, batch: BlockBatch, gradients_KMN: Tensor, step: Step) -> Tensor:
        """p `[K, 1, 1]`: the gradient against the average of those before it, which are of other batches."""
        if not self._noise_aware:
            return torch.full((batch.count, 1, 1), self._exponent, device=batch.device)
        momentum = batch.state[MOMENTUM]
        now = decode_int8(momentum, batch.state[MOMENTUM_SCALE]) if MOMENTUM_SCALE in batch.state else momentum.float()
        energy = gradients_KMN.square().sum((1, 2))
        past = (gradients_KMN * now).sum((1, 2)) - (1 - self._momentum) * energy
        weight = self._momentum * (1 - self._momentum ** (step.number - 1))  # of the past in the average now
        overlap = past / weight if weight else torch.zeros_like(past)
        for slot, fresh in ((OVERLAP, overlap), (ENERGY, energy)):
            step.store_active(batch.state[slot], torch.lerp(fresh, batch.state[slot], NOISE_BETA))
        return noise_exponent(batch.state[OVERLAP], batch.state[ENERGY])[:, None, None]

    def promised(self, steps: list[Tensor]) -> Tensor:
        """Reduction of the loss that the quadratic model promises for `steps`: `[K, m, n]` per batch, W before - after.

        <g, D> - D^T G D / 2 with the gradients of the step that `measures` named.
        """
        total = torch.zeros((), device=steps[0].device)
        for batch, step_KMN in zip(self.statistics.batches, steps, strict=True):
            bend = quadratic_term(step_KMN, self.statistics.diagonal(batch), *_bases(batch))
            total = total + (self._slopes[id(batch)] * step_KMN).sum() - bend.sum() / 2
        self._slopes.clear()
        return total

    def phase(self, number: int) -> Eager:
        """Always eager."""
        return Eager("gnprox corrects its averages by the number of the step, which a CUDA graph would repeat")

    def metrics(self) -> dict[str, Tensor | float]:
        """Damping, the last reduction ratio, and the mean exponent."""
        found = {"gnprox_damping": self.damping.value, "gnprox_reduction_ratio": self.damping.ratio}
        if self._powers:
            found["gnprox_exponent"] = torch.cat([p.flatten() for p in self._powers.values()]).mean()
        return super().metrics() | found


def _bases(batch: BlockBatch) -> tuple[Tensor, Tensor]:
    return batch.state[OUTPUT_BASIS], batch.state[INPUT_BASIS]
