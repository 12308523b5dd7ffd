"""Curvature of every matrix of GNProx: Kronecker covariances, their eigenbases, and the diagonal between them.

Averages over measurements, in the state of the batches. A measurement is `begin`, `add` for each product that the
backward pass with drawn labels goes through, `finish`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.optim.blocks import BlockBatch, Part
from sigma.optim.curvature import diagonal_curvature, input_covariance, output_covariance
from sigma.optim.eigenbasis import follow_basis

INPUTS, INPUT_BASIS = "gn_inputs", "gn_input_basis"
OUTPUTS, OUTPUT_BASIS = "gn_outputs", "gn_output_basis"
DIAGONAL, MASS = "gn_diagonal", "gn_mass"
FIRST_STEPS = 10
"""Steps of orthogonal iteration from the identity at the first measurement."""
_TINY = 1e-30


class CurvatureStatistics:
    """`beta` is the weight of the past in the averages."""

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self.batches: list[BlockBatch] = []
        self._fresh: dict[int, dict[str, Tensor]] = {}

    def prepare(self, batch: BlockBatch) -> None:
        """Two covariances, two bases (the identity at first), the diagonal, and the mass of the averages."""
        for covariance, basis, size in ((INPUTS, INPUT_BASIS, batch.columns), (OUTPUTS, OUTPUT_BASIS, batch.rows)):
            batch.new_state(covariance, (size, size), torch.float32)
            batch.new_state(basis, (size, size), torch.float32).diagonal(dim1=1, dim2=2).fill_(1)
        batch.new_state(DIAGONAL, (batch.rows, batch.columns), torch.float32)
        batch.new_state(MASS, (), torch.float32)
        self.batches.append(batch)

    def diagonal(self, batch: BlockBatch) -> Tensor:
        """H `[K, m, n]` in the bases of the batch; zero before the first measurement."""
        return batch.state[DIAGONAL] / batch.state[MASS].clamp(min=_TINY)[:, None, None]

    def watched(self) -> dict[Parameter, list[tuple[BlockBatch, Part]]]:
        """The parameters whose products are to be watched, and the matrices in each."""
        found: dict[Parameter, list[tuple[BlockBatch, Part]]] = {}
        for batch in self.batches:
            for part in batch.parts:
                found.setdefault(part.parameter, []).append((batch, part))
        return found

    def begin(self) -> None:
        """Start a measurement."""
        slots = (INPUTS, OUTPUTS, DIAGONAL)
        self._fresh = {id(b): {slot: torch.zeros_like(b.state[slot]) for slot in slots} for b in self.batches}

    def add(self, batch: BlockBatch, part: Part, x_TN: Tensor, d_TM: Tensor, labels: Tensor) -> None:
        """Inputs and output gradients of one matrix, or of a stack of experts.

        A stack gets the input side only: one covariance for all its experts, and one mean curvature of their outputs.
        """
        fresh, own = self._fresh[id(batch)], slice(part.start, part.start + part.count)
        d_TM = d_TM[:, part.first_row : part.first_row + part.rows]
        inputs, right = input_covariance(x_TN), batch.state[INPUT_BASIS][part.start]
        fresh[INPUTS][own] += inputs
        if part.stacked:
            mean = labels * d_TM.square().sum() / (part.rows * part.count)
            fresh[OUTPUTS][own] += mean * torch.eye(part.rows, device=x_TN.device)
            fresh[DIAGONAL][own] += mean * (right.mT @ inputs @ right).diagonal()
        else:
            fresh[OUTPUTS][own] += output_covariance(d_TM, labels)
            left = batch.state[OUTPUT_BASIS][part.start]
            fresh[DIAGONAL][own] += diagonal_curvature(x_TN, d_TM, right, left, labels)

    def finish(self, *, first: bool) -> Tensor:
        """Take the measurement in and move the bases after it; 0 on the device when it was not finite and is dropped.

        The first one has no bases to measure the diagonal in: it finds them, and the diagonal is that of A (x) B.
        """
        sums = [value.sum() for fresh in self._fresh.values() for value in fresh.values()]
        finite = torch.stack(sums).isfinite().all()
        for batch in self.batches:
            self._take(batch, self._fresh[id(batch)], finite, first)
        self._fresh = {}
        return finite.to(torch.int64)

    def _take(self, batch: BlockBatch, fresh: dict[str, Tensor], finite: Tensor, first: bool) -> None:
        state = batch.state
        bases = {}
        for covariance, basis in ((INPUTS, INPUT_BASIS), (OUTPUTS, OUTPUT_BASIS)):
            _put(state[covariance], torch.lerp(fresh[covariance], state[covariance], self._beta), finite)
            bases[basis] = state[basis]
            for _ in range(FIRST_STEPS if first else 1):
                bases[basis] = follow_basis(state[covariance], bases[basis])
            _put(state[basis], bases[basis], finite)
        if first:
            a_KN, b_KM = (_diagonal(fresh[c], state[q]) for c, q in ((INPUTS, INPUT_BASIS), (OUTPUTS, OUTPUT_BASIS)))
            fresh[DIAGONAL] = b_KM[:, :, None] * a_KN[:, None, :]
        for slot, value in ((DIAGONAL, fresh[DIAGONAL]), (MASS, torch.ones_like(state[MASS]))):
            _put(state[slot], torch.lerp(value, state[slot], self._beta), finite)


def _diagonal(matrix_KNN: Tensor, basis_KNN: Tensor) -> Tensor:
    return ((matrix_KNN @ basis_KNN) * basis_KNN).sum(1)


def _put(target: Tensor, value: Tensor, finite: Tensor) -> None:
    target.copy_(torch.where(finite, value, target))
