"""Muon: the polar factor of the averaged gradient, at the root mean square of an AdamW update.

K. Jordan, kellerjordan.github.io/posts/muon; scale 0.2 sqrt(max(m, n)): arXiv:2502.16982, 2.2. With `--muon-polynomial
newton_schulz` a plain matrix gets torch.optim.Muon's update (`match_rms_adamw`) bit for bit.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from sigma.config.optim import OptimSection
from sigma.optim.blocks import BlockBatch
from sigma.optim.matrix import Step, Update
from sigma.optim.orthogonal import Orthogonaliser
from sigma_kernels.matrix_step.reference import Form


class Muon:
    """The direction of Muon. NorMuon and AdaMuon normalise its result, SoapMuon and GNProx change its input."""

    dtype = torch.bfloat16
    prox = False

    def __init__(self, optim: OptimSection) -> None:
        self.form: Form = "nesterov" if optim.muon_nesterov else "average"
        self.orthogonal = Orthogonaliser(optim)

    def prepare(self, batch: BlockBatch) -> None:
        """The slots of the orthogonalisation."""
        self.orthogonal.prepare(batch)

    def __call__(self, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
        """0.2 sqrt(max(m, n)) polar(averaged)."""
        return self.orthogonal(batch, averaged_KMN, step)

    def phase(self, number: int) -> Hashable:
        """That of the orthogonalisation."""
        return self.orthogonal.phase(number)

    def metrics(self) -> dict[str, Tensor | float]:
        """How many matrices were orthogonalised how."""
        return self.orthogonal.metrics()
