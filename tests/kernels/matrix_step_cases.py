"""What the tests of momentum and weight steps share: batches of blocks, and how kernels and reference are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sigma_kernels import dispatch
from sigma_kernels.matrix_step.blocks import BlockList
from sigma_kernels.matrix_step.codes import decode_residual, encode_int8, encode_residual


@dataclass
class Batch:
    """Blocks of 12 x 10 (or of `rows` x `columns`): a matrix, rows 8 to the end of a fused projection, a stack of 3."""

    blocks: BlockList
    weights: list[Tensor]
    gradients: list[Tensor | None]
    momentum: Tensor
    scale: Tensor | None
    residual: Tensor | None
    direction: Tensor
    rate: Tensor
    decay: Tensor


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batch(
    rows: int = 12,
    columns: int = 10,
    *,
    momentum: str = "fp32",
    residual: bool = False,
    grad_dtype: torch.dtype = torch.float32,
    absent: bool = False,
    device: str = "cpu",
) -> Batch:
    """A batch of five blocks; `absent` leaves the fused projection without a gradient."""
    shapes = [(rows, columns), (rows + 8, columns), (3, rows, columns)]
    weights = [draw(*s, seed=i).to(device) for i, s in enumerate(shapes)]
    gradients: list[Tensor | None] = [draw(*s, seed=10 + i).to(device, grad_dtype) for i, s in enumerate(shapes)]
    if absent:
        gradients[1] = None
    ranges = [(0, rows), (8, rows), (0, rows)]
    past = draw(5, rows, columns, seed=20).to(device)
    scale = low = None
    if momentum == "int8":
        past, scale = encode_int8(past)
    elif momentum == "bf16":
        past = past.bfloat16()
    if residual:
        pairs = [encode_residual(w) for w in weights]
        weights = [coarse for coarse, _ in pairs]
        low = torch.cat([f if f.ndim == 3 else f[None, -rows:] for _, f in pairs]).contiguous()
    return Batch(
        BlockList(weights, ranges), weights, gradients, past, scale, low,
        draw(5, rows, columns, seed=30).to(device, torch.bfloat16),
        (0.01 * (1 + torch.arange(5.0))).to(device), (1 - 0.01 * torch.arange(5.0)).to(device),
    )  # fmt: skip


def scales(batch: Batch, kind: str | None) -> Tensor | None:
    """A scale of one kind: for each matrix, row or column."""
    _, rows, columns = batch.direction.shape
    shape = {None: None, "matrix": (5, 1, 1), "row": (5, rows, 1), "column": (5, 1, columns)}[kind]
    return None if shape is None else draw(*shape, seed=40).to(batch.direction.device)


def both(make: Callable[[], Batch], run: Callable[[Batch], Any]) -> list[tuple[Batch, Any]]:
    """A new batch and what `run` returns for it: by the kernels, and by the reference."""
    found = []
    for backend in ("triton", "reference"):
        with dispatch.using(backend):
            batch = make()
            found.append((batch, run(batch)))
    return found


def close(got: Tensor, want: Tensor) -> None:
    """Of one type, and equal up to the rounding of that type; int8 codes may seldom differ by one."""
    assert got.dtype == want.dtype
    if got.dtype == torch.int8:
        assert (got.int() - want.int()).abs().max() <= 1
        assert (got != want).float().mean() < 0.01
    else:
        rtol = 1e-5 if got.dtype == torch.float32 else 2.0**-7
        torch.testing.assert_close(got, want, rtol=rtol, atol=1e-6)


def masters(batch: Batch) -> list[Tensor]:
    """The weights in fp32, with their residual."""
    if batch.residual is None:
        return batch.weights
    rows = batch.blocks.rows
    coarse = torch.cat([w if w.ndim == 3 else w[None, -rows:] for w in batch.weights])
    return [decode_residual(coarse, batch.residual)]


def rows_in_layout(layout: str, *shape: int, dtype: torch.dtype = torch.float16, device: str = "cpu") -> Tensor:
    """Matrices `[K, m, n]` inside of larger ones that are NaN: whole rows or columns lie together, or neither."""
    values = draw(*shape, seed=50).to(device, dtype)
    if layout == "columns":
        values = values.mT
    steps = 2 if layout == "every second" else 1
    around = torch.full(
        (shape[0], values.shape[1] + 2, steps * values.shape[2] + 5), float("nan"), dtype=dtype, device=device
    )
    inside = around[:, 1:-1, 2:-3:steps]
    inside.copy_(values)
    return inside.mT if layout == "columns" else inside


def exact_squares(x_KMN: Tensor) -> Tensor:
    """The sums of squares of the rows in fp64."""
    return x_KMN.double().square().sum(dim=2)
