"""When and over what a matrix optimizer orthogonalises: whole matrices, groups of layers, blocks of rows, or seldom."""

from __future__ import annotations

from torch import Tensor

from sigma.config.optim import OptimSection
from sigma.optim.blocks import BlockBatch
from sigma.optim.matrix import Step, Update, rms_factor
from sigma_kernels import counters
from sigma_kernels.orthogonalise.op import orthogonalise

FULL = "muon.full"


class Orthogonaliser:
    """Polar factors as an `Update` of root mean square 0.2."""

    def __init__(self, optim: OptimSection) -> None:
        self._optim = optim

    def prepare(self, batch: BlockBatch) -> None:
        """No slots for whole matrices."""

    def __call__(self, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
        """The directions of a batch."""
        counters.add(FULL, batch.count)
        o = self._optim
        polar = orthogonalise(averaged_KMN, polynomial=o.muon_polynomial, iterations=o.muon_iterations)
        return Update(polar, rms_factor(batch.rows, batch.columns))

    def metrics(self) -> dict[str, Tensor | float]:
        """Matrices orthogonalised as a whole so far, over the life of the run."""
        return {"muon_full_orth_updates": counters.get(FULL)}
