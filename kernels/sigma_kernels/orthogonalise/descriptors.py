"""The symmetric products by tensor descriptors: the copy engine of sm_90 moves the tiles, in and out.

No program computes an address or a mask: a load beyond a matrix gives zeros, a store there is dropped. With tiles
that leave registers and shared memory for two programs on a processor, one stores while the other multiplies.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sigma_kernels.orthogonalise.upper import upper_tile, upper_tiles

ALIGNMENT = 16  # bytes, of addresses and strides


@triton.jit
def product_by_descriptors(
    x, y, own, out, rows, columns, a, b, c,
    QUADRATIC: tl.constexpr, BLOCK: tl.constexpr, RATIO: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = X Y^T, which must be symmetric, or with QUADRATIC a I + b X + c X Y^T.

    A program owns BLOCK rows and RATIO * BLOCK columns, and writes the squares of it that lie on or above the diagonal.
    """
    k, i, j = upper_tile(tl.program_id(0), rows, BLOCK, RATIO)
    if i * BLOCK < rows:  # the last row of wide tiles may have no second half
        tl.assume(columns > 0)  # else ptxas may wait after every product: it sees the sum as defined by other ways too
        total = tl.zeros((BLOCK, RATIO * BLOCK), tl.float32)
        for start in range(0, columns, BLOCK_K):
            left = x.load([k, i * BLOCK, start]).reshape(BLOCK, BLOCK_K)
            right = y.load([k, j * BLOCK, start]).reshape(RATIO * BLOCK, BLOCK_K)
            total = tl.dot(left, right.T, total)
        if RATIO == 1:
            _store_square(own, out, total, k, i, j, a, b, c, QUADRATIC, BLOCK)
        else:
            near, far = total.reshape(BLOCK, 2, BLOCK).permute(0, 2, 1).split()
            if j >= i:
                _store_square(own, out, near, k, i, j, a, b, c, QUADRATIC, BLOCK)
            _store_square(own, out, far, k, i, j + 1, a, b, c, QUADRATIC, BLOCK)


@triton.jit
def _store_square(own, out, total, k, i, j, a, b, c, QUADRATIC: tl.constexpr, BLOCK: tl.constexpr):
    """Square (i, j) of the result and its mirror image."""
    if QUADRATIC:
        total = c * total + b * own.load([k, i * BLOCK, j * BLOCK]).reshape(BLOCK, BLOCK).to(tl.float32)
        row, column = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
        total += tl.where(row[:, None] == column[None, :], a, 0.0)
    half = total.to(out.dtype)
    out.store([k, i * BLOCK, j * BLOCK], half.reshape(1, BLOCK, BLOCK))
    if i != j:
        out.store([k, j * BLOCK, i * BLOCK], half.T.reshape(1, BLOCK, BLOCK))


def describable(*tensors: Tensor) -> bool:
    """Whether descriptors can stand for these batches of matrices, whose rows are contiguous."""
    return all(
        t.data_ptr() % ALIGNMENT == 0 and all(s * t.element_size() % ALIGNMENT == 0 for s in t.stride()[:-1])
        for t in tensors
    )


def launch(x: Tensor, y: Tensor, out: Tensor, triple: tuple[float, float, float] | None, tile: dict[str, Any]) -> None:
    """Launch with a tile as of `tile_of`."""
    block, ratio, inner = tile["BLOCK"], tile["RATIO"], tile["BLOCK_K"]
    count, rows, columns = x.shape
    square = _described(out, block, block)
    own = square if triple is None else _described(x, block, block)
    a, b, c = triple or (0.0, 0.0, 1.0)
    product_by_descriptors[(count * upper_tiles(rows, block, ratio),)](
        _described(x, block, inner), _described(y, ratio * block, inner), own, square, rows, columns, a, b, c,
        QUADRATIC=triple is not None, **tile,
    )  # fmt: skip


def _described(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, rows, columns])
