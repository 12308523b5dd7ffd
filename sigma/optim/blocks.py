"""Logical matrices of one shape, gathered from the parameters that hold them, and the state that belongs to them.

A fused projection holds several matrices in its rows, a stack `[E, out, in]` one (or several) for each expert. All of
one shape, rate and decay form a batch `[K, m, n]`, because one launch over many small matrices is worth many times a
loop over them. Inside a parameter each matrix is a contiguous range of memory, so that a batch needs no copy of the
weights: its kernels take addresses.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.optim.routing import Route
from sigma_kernels.matrix_step.blocks import BlockList

SEPARATOR = "|"  # between parameter name and slot; no parameter name holds it


@dataclass(frozen=True)
class Part:
    """Rows of one parameter that are a matrix, or a matrix of each expert: blocks `start` to `start + count`."""

    name: str
    parameter: Parameter
    first_row: int
    rows: int
    label: str  # behind the slot in checkpoint keys: "" for a whole parameter, ".1" for the second part
    start: int
    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """The blocks `[count, m, n]` inside a tensor of the parameter's shape (a view)."""
        return (tensor if tensor.ndim == 3 else tensor[None]).narrow(1, self.first_row, self.rows)

    @property
    def kind(self) -> str:
        """The same for the same matrix of all layers: the name without its numbers."""
        return re.sub(r"\d+", "#", self.name) + self.label

    @property
    def stacked(self) -> bool:
        """Whether this is a stack of experts."""
        return self.parameter.ndim == 3


@dataclass
class BlockBatch:
    """K matrices of m rows and n columns. `lr` is a float64 scalar on the device; `state` holds stacks `[K, ...]`."""

    parts: list[Part]
    rows: int
    columns: int
    peak_lr: float
    weight_decay: float
    lr: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks = BlockList([p.parameter for p in self.parts], [(p.first_row, p.rows) for p in self.parts])

    @property
    def count(self) -> int:
        """K."""
        return sum(part.count for part in self.parts)

    @property
    def device(self) -> torch.device:
        """Where parameters and state are."""
        return self.parts[0].parameter.device

    def new_state(self, name: str, shape: Sequence[int], dtype: torch.dtype, fill: float = 0.0) -> Tensor:
        """A stack `[K, *shape]` under this slot, made once and saved with the checkpoint as `<parameter>|<slot>`."""
        if name not in self.state:
            self.state[name] = torch.full((self.count, *shape), fill, dtype=dtype, device=self.device)
        return self.state[name]

    def gradients(self) -> Tensor:
        """The gradients `[K, m, n]` in fp32 (a copy); zeros where a parameter has none."""
        return self._gather([p.parameter.grad for p in self.parts])

    def present_gradients(self) -> list[Tensor]:
        """The gradients of the parameters that have one, as they are."""
        return [p.parameter.grad for p in self.parts if p.parameter.grad is not None]

    def write_tables(self, without: torch.dtype) -> Hashable:
        """Tell the kernels where gradients and weights are now; returns what their launches depend on besides that.

        That is the types (`without` where no parameter has a gradient) and whether all addresses are aligned.
        """
        weights, gradients = [p.parameter for p in self.parts], self.present_gradients()
        self.blocks.table("gradients", [p.grad for p in weights])
        self.blocks.table("weights", weights)
        types = gradients[0].dtype if gradients else without, weights[0].dtype
        return types, self.blocks.aligned("gradients"), self.blocks.aligned("weights")

    def weights(self) -> Tensor:
        """The weights `[K, m, n]` in fp32 (a copy), without their residual."""
        return self._gather([p.parameter.detach() for p in self.parts])

    def _gather(self, tensors: Sequence[Tensor | None]) -> Tensor:
        out = torch.zeros((self.count, self.rows, self.columns), dtype=torch.float32, device=self.device)
        for part, tensor in zip(self.parts, tensors, strict=True):
            if tensor is not None:
                out[part.start : part.start + part.count] = part.of(tensor)
        return out

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """Views of the state, one for each part, under their checkpoint keys."""
        for slot, stack in self.state.items():
            for part in self.parts:
                view = stack[part.start : part.start + part.count] if part.stacked else stack[part.start]
                yield f"{part.name}{SEPARATOR}{slot}{part.label}", view


def make_batches(parameters: dict[str, Parameter], routes: Sequence[Route]) -> list[BlockBatch]:
    """One batch for each (shape, dtype, rate, decay) among the routes of the matrix optimizer, in their order.

    Raises ValueError for a parameter that is no matrix and no stack, and for splits that do not add up to its rows.
    """
    parts: dict[tuple, list[Part]] = {}
    for r in routes:
        parameter = parameters[r.name]
        _check(r, parameter)
        first_row, stacked = 0, parameter.ndim == 3
        for index, rows in enumerate(r.splits or (parameter.size(-2),)):
            key = (rows, parameter.size(-1), parameter.dtype, parameter.device, r.lr, r.weight_decay)
            batch = parts.setdefault(key, [])
            start = batch[-1].start + batch[-1].count if batch else 0
            label, count = f".{index}" if r.splits else "", parameter.size(0) if stacked else 1
            batch.append(Part(r.name, parameter, first_row, rows, label, start, count))
            first_row += rows
    return [
        BlockBatch(members, rows, columns, lr, decay, torch.tensor(lr, dtype=torch.float64, device=device))
        for (rows, columns, _, device, lr, decay), members in parts.items()
    ]


def _check(route: Route, parameter: Parameter) -> None:
    if parameter.ndim not in (2, 3) or not parameter.is_contiguous():
        raise ValueError(
            f"{route.name}: a matrix optimizer needs a contiguous matrix or stack of matrices, not a tensor of shape"
            f" {tuple(parameter.shape)}"
        )
    if route.splits and sum(route.splits) != parameter.size(-2):
        raise ValueError(f"{route.name}: splits {route.splits} do not add up to its {parameter.size(-2)} rows")
