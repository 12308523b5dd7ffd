"""When and over what a matrix optimizer orthogonalises: whole matrices, layers together, blocks of rows, or seldom.

Every way gives an `Update` whose root mean square is 0.2 for a full-rank matrix, whatever was orthogonalised.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sigma.config.optim import OptimSection
from sigma.optim.blocks import BlockBatch
from sigma.optim.matrix import Step, Update, rms_factor
from sigma_kernels import counters
from sigma_kernels.orthogonalise.op import orthogonalise, orthogonalise_with_transform

FULL, BLOCK, FAST = "muon.full", "muon.block", "muon.fast"
TRANSFORM = "polar_transform"


class Orthogonaliser:
    """Polar factors as an `Update`, by the flags `muon-block-period`, `muon-interval` and `teon-layers`."""

    def __init__(self, optim: OptimSection) -> None:
        self._optim = optim
        self._groups: dict[int, list[Tensor]] = {}

    def prepare(self, batch: BlockBatch) -> None:
        """A slot for the transform that is used again between two orthogonalisations, or the groups of layers."""
        if self._optim.muon_interval > 1:
            side = min(batch.rows, batch.columns)
            batch.new_state(TRANSFORM, (side, side), torch.float16)  # bf16 would lose the small directions
        if self._optim.teon_layers > 1:
            self._groups[id(batch)] = layer_groups(batch, self._optim.teon_layers)

    def __call__(self, batch: BlockBatch, averaged_KMN: Tensor, step: Step) -> Update:
        """The directions of a batch."""
        o = self._optim
        if self._in_blocks(step.number) and batch.rows > o.muon_block_rows:
            counters.add(BLOCK, batch.count)
            return self._blocks_of_rows(averaged_KMN)
        if o.muon_interval > 1:
            if self._due(step.number):
                counters.add(FULL, batch.count)
                return self._with_transform(batch, averaged_KMN, step)
            counters.add(FAST, batch.count)
            return self._transformed(batch, averaged_KMN)
        counters.add(FULL, batch.count)
        if o.teon_layers > 1:
            return self._layers_together(batch, averaged_KMN)
        return Update(self._polar(averaged_KMN), rms_factor(batch.rows, batch.columns))

    def phase(self, number: int) -> tuple[bool, bool]:
        """Whether step `number` takes blocks of rows, and whether it uses an earlier transform."""
        return self._in_blocks(number), self._optim.muon_interval > 1 and not self._due(number)

    def _in_blocks(self, number: int) -> bool:
        return self._optim.muon_block_period > 1 and number % self._optim.muon_block_period != 1

    def _due(self, number: int) -> bool:
        return due(number, self._optim.muon_interval, self._optim.muon_interval_warmup)

    def _polar(self, x_KMN: Tensor) -> Tensor:
        o = self._optim
        return orthogonalise(x_KMN, polynomial=o.muon_polynomial, iterations=o.muon_iterations)

    def _blocks_of_rows(self, x_KMN: Tensor) -> Update:
        """Each block of rows by itself, with the step size of its own shape (MuonBP, arXiv:2510.16981)."""
        count, rows, columns = x_KMN.shape
        size = self._optim.muon_block_rows
        even = rows // size * size
        factor = rms_factor(size, columns)
        polar = self._polar(x_KMN[:, :even].reshape(-1, size, columns)).reshape(count, even, columns)
        if even == rows:
            return Update(polar, factor)
        rest = self._polar(x_KMN[:, even:])
        # a remainder has fewer rows than a block, so its factor differs only where blocks are tall
        share = rms_factor(rows - even, columns) / factor
        return Update(torch.cat([polar, rest * share], dim=1), factor)

    def _with_transform(self, batch: BlockBatch, x_KMN: Tensor, step: Step) -> Update:
        polar, transform = orthogonalise_with_transform(x_KMN, iterations=self._optim.muon_iterations)
        step.store(batch.state[TRANSFORM], transform)
        return Update(polar, rms_factor(batch.rows, batch.columns))

    def _transformed(self, batch: BlockBatch, x_KMN: Tensor) -> Update:
        """The last transform on the newest average, at the norm of an orthogonal matrix; zero before the first one."""
        norm = torch.linalg.vector_norm(x_KMN, dim=(1, 2), keepdim=True, dtype=torch.float32)
        half = torch.float16 if x_KMN.is_cuda else torch.float32
        x = (x_KMN / norm.clamp(min=1e-30)).to(half)
        transform = batch.state[TRANSFORM].to(half)
        moved = transform @ x if batch.rows <= batch.columns else x @ transform
        length = torch.linalg.vector_norm(moved, dim=(1, 2), keepdim=True, dtype=torch.float32)
        wanted = math.sqrt(min(batch.rows, batch.columns))
        scale = torch.where(length > 0, wanted / length, 0.0)
        return Update(moved, rms_factor(batch.rows, batch.columns), scale)

    def _layers_together(self, batch: BlockBatch, x_KMN: Tensor) -> Update:
        """TEON (arXiv:2601.23261): the same matrix of k consecutive layers side by side, `[m, k n]`, is one matrix.

        Its scale is that of its own shape; for k = 1 this is Muon.
        """
        _, rows, columns = x_KMN.shape
        factor = rms_factor(rows, columns)
        out = torch.empty_like(x_KMN)
        for group_GL in self._groups[id(batch)]:
            groups, layers = group_GL.shape
            flat = group_GL.flatten()
            beside = x_KMN.index_select(0, flat).unflatten(0, (groups, layers)).transpose(1, 2).flatten(2)
            polar = self._polar(beside) * (rms_factor(rows, layers * columns) / factor)
            apart = polar.unflatten(2, (layers, columns)).transpose(1, 2).flatten(0, 1)
            out.index_copy_(0, flat, apart.to(out.dtype))
        return Update(out, factor)

    def metrics(self) -> dict[str, Tensor | float]:
        """Matrices orthogonalised as a whole, in blocks of rows, or by an earlier transform, over the run's life."""
        return {
            "muon_full_orth_updates": counters.get(FULL),
            "muon_block_orth_updates": counters.get(BLOCK),
            "muon_fast_updates": counters.get(FAST),
        }


def due(step: int, interval: int, warmup: int) -> bool:
    """Whether a transform is made anew in `step` (from 1): the interval grows evenly from 1 over `warmup` steps."""
    now = round(1 + (interval - 1) * min(step / warmup, 1.0)) if warmup else interval
    return step == 1 or step % now == 0


def layer_groups(batch: BlockBatch, layers: int) -> list[Tensor]:
    """Indices `[groups, k]` of blocks that belong together; one tensor for each k that occurs, at most `layers`.

    Experts are no neighbours of each other, nor of those of the next layer: each stays alone.
    """
    kinds: dict[str, list[int]] = {}
    for part in batch.parts:
        for i in range(part.count):
            kinds.setdefault(f"{part.name}[{i}]" if part.stacked else part.kind, []).append(part.start + i)
    groups: dict[int, list[list[int]]] = {}
    for members in kinds.values():
        for start in range(0, len(members), layers):
            group = members[start : start + layers]
            groups.setdefault(len(group), []).append(group)
    return [torch.tensor(found, device=batch.device) for found in groups.values()]
