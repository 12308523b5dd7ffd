"""Where the matrices of a batch lie: contiguous ranges of memory inside the parameters, given to kernels as addresses.

Weights stay where they are; gradients are new tensors in every step. A kernel therefore finds block k at
`address[owner[k]] + offset[k]`, where `address` is a small table on the device. It is written by launches that carry
the addresses as arguments, so that neither a copy from the host nor a wait is needed, and a CUDA graph can hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ADDRESSES = 8  # that one launch carries
ABSENT = 1 << 62  # in place of the address of a tensor that is not there; as long as every address of a GPU


@dataclass
class BlockTable:
    """`address_P` in bytes, padded to whole launches; `owner_K` is p, `offset_K` counts elements."""

    address_P: Tensor
    owner_K: Tensor
    offset_K: Tensor
    written: tuple[int, ...] = field(default=())


class BlockList:
    """K matrices in P tensors: of tensor p the rows `first_row` to `first_row + rows`, of each expert of a stack.

    The tensors are contiguous `[R, n]` or `[E, R, n]`; all ranges have as many rows.
    """

    def __init__(self, tensors: Sequence[Tensor], ranges: Sequence[tuple[int, int]]) -> None:
        self.shapes = [tuple(t.shape) for t in tensors]
        self.ranges = list(ranges)
        self.rows, self.columns = ranges[0][1], tensors[0].shape[-1]
        self.counts = [t.shape[0] if t.ndim == 3 else 1 for t in tensors]
        self.count = sum(self.counts)
        self.device = tensors[0].device
        sizes = [shape[-2] * shape[-1] for shape in self.shapes] + [first * self.columns for first, _ in ranges]
        self._aligned = all(size % 8 == 0 for size in sizes)
        self._tables: dict[str, BlockTable] = {}

    def views(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The blocks `[count, m, n]` of each tensor; raises ValueError when a shape is not that of the list."""
        return [self._view(p, tensor) for p, tensor in enumerate(tensors)]

    def _view(self, p: int, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if tuple(tensor.shape) != self.shapes[p]:
            raise ValueError(f"tensor {p} of the batch is {tuple(tensor.shape)}, not {self.shapes[p]}")
        first_row, rows = self.ranges[p]
        return (tensor if tensor.ndim == 3 else tensor[None]).narrow(1, first_row, rows)

    def table(self, what: str, tensors: Sequence[Tensor | None]) -> BlockTable:
        """The addresses of these tensors on the device, written only when they are others than the last time."""
        if what not in self._tables:
            self._tables[what] = self._new_table()
        table = self._tables[what]
        addresses = tuple(ABSENT if t is None else t.data_ptr() for t in tensors)
        if addresses != table.written:
            from sigma_kernels.matrix_step.kernel import write_addresses

            write_addresses(table.address_P, addresses)
            table.written = addresses
        return table

    def aligned(self, what: str) -> bool:
        """Whether every matrix of a table that was written starts at a multiple of 16 bytes."""
        return self._aligned and all(address % 16 == 0 for address in self._tables[what].written)

    def _new_table(self) -> BlockTable:
        owners, offsets = [], []
        for p, (shape, (first_row, _)) in enumerate(zip(self.shapes, self.ranges, strict=True)):
            for e in range(self.counts[p]):
                owners.append(p)
                offsets.append((e * shape[-2] + first_row) * self.columns)
        return BlockTable(
            torch.zeros(-(-len(self.shapes) // ADDRESSES) * ADDRESSES, dtype=torch.int64, device=self.device),
            torch.tensor(owners, dtype=torch.int32, device=self.device),
            torch.tensor(offsets, dtype=torch.int64, device=self.device),
        )
