"""NorMuon: Muon whose output rows get equal size over time (arXiv:2510.05491)."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma.config.optim import OptimSection
from sigma.optim.blocks import BlockBatch
from sigma.optim.matrix import Step, Update
from sigma.optim.muon import Muon
from sigma_kernels.matrix_step.op import row_squares

ROW_SQUARES = "row_squares"
EPS = 1e-8


class NorMuon(Muon):
    """v_i <- b v_i + (1 - b) mean_j O_ij^2 of each row i; O_ij / (sqrt(v_i) + eps) at the Frobenius norm of O.

    Without a correction of the bias: it is one factor for all rows, which the norm takes out again. With b = 1, v stays
    zero and the update is Muon's.
    """

    def __init__(self, optim: OptimSection) -> None:
        super().__init__(optim)
        self._beta2 = optim.normuon_beta2

    def prepare(self, batch: BlockBatch) -> None:
        """One number for each row."""
        super().prepare(batch)
        batch.new_state(ROW_SQUARES, (batch.rows,), torch.float32)

    def __call__(self, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
        """Muon's update with a scale for each row."""
        update = super().__call__(batch, averaged_KMN, step)
        squares_KM = row_squares(update.direction_KMN)
        if update.scale is not None:  # one for each matrix
            squares_KM = squares_KM * update.scale[:, :, 0].square()
        past = batch.state[ROW_SQUARES]
        mean = torch.lerp(past, squares_KM / batch.columns, 1 - self._beta2)
        step.store_active(past, mean)
        rows_KM = 1 / (mean.sqrt() + EPS)
        now, then = (squares_KM * rows_KM.square()).sum(dim=1), squares_KM.sum(dim=1)
        restore_K = torch.where(now > 0, (then / now).sqrt(), 0.0)
        scale = (rows_KM * restore_K[:, None])[..., None]
        return Update(update.direction_KMN, update.factor, scale if update.scale is None else scale * update.scale)
