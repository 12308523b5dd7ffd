"""SOAP-Muon: whiten the averaged gradient in the eigenbasis of its covariances, then orthogonalise.

L and R are averages of G G^T and G^T G, Q_L and Q_R their eigenbases, V the average of (Q_L^T G Q_R)^2:

    D = polar(Q_L ((Q_L^T U Q_R) / sqrt(V)) Q_R^T)

with Muon's momentum U. SOAP (arXiv:2409.11321) would step along the whitened matrix itself; the norm that it matches to
plays no part before a polar factor. SOAP before Muon: notes of N. Vyas and the modded-nanogpt optimisation track.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.optim.blocks import BlockBatch
from sigma.optim.eigenbasis import follow_basis, from_basis, to_basis
from sigma.optim.matrix import Eager, Step, Update
from sigma.optim.muon import Muon

COVARIANCES = (("soap_left", "soap_left_basis"), ("soap_right", "soap_right_basis"))
POWER = "soap_power"
RELATIVE_EPS = 1e-3
"""In units of the root mean square of sqrt(V): where a matrix has no gradient, rounding errors are not whitened."""
_TINY = 1e-30


class SoapMuon(Muon):
    """The direction of SOAP-Muon. The bases follow in each of the first steps, then every `--soap-interval`."""

    dtype = torch.float32

    def __init__(self, optim: OptimSection, curvature: CurvatureSection) -> None:
        super().__init__(optim)
        self._beta, self._interval = curvature.soap_beta, curvature.soap_interval

    def prepare(self, batch: BlockBatch) -> None:
        """Two covariances, two bases (the identity at first), and the power of every element."""
        super().prepare(batch)
        for (covariance, basis), size in zip(COVARIANCES, (batch.rows, batch.columns), strict=True):
            batch.new_state(covariance, (size, size), torch.float32)
            batch.new_state(basis, (size, size), torch.float32).diagonal(dim1=1, dim2=2).fill_(1)
        batch.new_state(POWER, (batch.rows, batch.columns), torch.float32)

    def __call__(self, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
        """0.2 sqrt(max(m, n)) polar(whitened)."""
        gradients_KMN = batch.gradients()
        left, right = self._bases(batch, gradients_KMN, step)
        seen = to_basis(gradients_KMN, left, right).square()
        # like every average here without bias correction: a common factor plays no part before a polar factor
        step.store_active(batch.state[POWER], torch.lerp(seen, batch.state[POWER], self._beta))
        root = batch.state[POWER].sqrt()
        eps = RELATIVE_EPS * batch.state[POWER].mean((1, 2), keepdim=True).sqrt() + _TINY
        whitened = from_basis(to_basis(averaged_KMN, left, right) / (root + eps), left, right)
        return super().__call__(batch, whitened, step)

    def phase(self, number: int) -> Eager:
        """Always eager."""
        return Eager("the QR decompositions of soapmuon are not captured")

    def _bases(self, batch: BlockBatch, gradients_KMN: Tensor, step: Step) -> list[Tensor]:
        refresh = step.number <= self._interval or step.number % self._interval == 0
        seen = (gradients_KMN @ gradients_KMN.mT, gradients_KMN.mT @ gradients_KMN)
        for (covariance, basis), fresh in zip(COVARIANCES, seen, strict=True):
            average = batch.state[covariance]
            step.store_active(average, torch.lerp(fresh, average, self._beta))
            if refresh:
                step.store_active(batch.state[basis], follow_basis(average, batch.state[basis]))
        return [batch.state[basis] for _, basis in COVARIANCES]
