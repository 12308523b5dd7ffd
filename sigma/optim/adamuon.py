"""AdaMuon: the polar factor of the sign of the momentum, with an elementwise second moment (arXiv:2507.11005, v3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sigma.config.optim import OptimSection
from sigma.optim.blocks import BlockBatch
from sigma.optim.matrix import UPDATE_RMS, Step, Update
from sigma.optim.muon import Muon
from sigma_kernels.matrix_step.reference import Form

SQUARES = "squares"
EPS = 1e-8


class AdaMuon(Muon):
    """O = polar(sign(M)); V <- b V + (1 - b) O^2; O / (sqrt(V) + eps) at the root mean square 0.2.

    The sign makes the result independent of the size of single elements; V needs no correction of its bias, which the
    scaling takes out. A second state of the size of the weights.
    """

    def __init__(self, optim: OptimSection) -> None:
        super().__init__(optim)
        self.form: Form = "sign"
        self._beta2 = optim.adamuon_beta2

    def prepare(self, batch: BlockBatch) -> None:
        """One number for each weight."""
        super().prepare(batch)
        batch.new_state(SQUARES, (batch.rows, batch.columns), torch.float32)

    def __call__(self, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
        """The update."""
        update = super().__call__(batch, averaged_KMN, step)
        polar = update.direction_KMN.float()
        if update.scale is not None:
            polar = polar * update.scale
        past = batch.state[SQUARES]
        squares = torch.lerp(past, polar.square(), 1 - self._beta2)
        step.store_active(past, squares)
        direction = polar / (squares.sqrt() + EPS)
        norm = torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True)
        scale = torch.where(norm > 0, 1 / norm, 0.0)
        return Update(direction, UPDATE_RMS * math.sqrt(batch.rows * batch.columns), scale)
