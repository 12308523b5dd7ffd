"""Cross-entropy of each label in Triton. The logits are read once forward; once backward, where a gradient is written.

Forward: a program walks over the logits of one row with a running maximum and a running sum (Milakov and Gimelshein,
arXiv:1805.02867). Backward: d logits = (softmax(logits) - onehot(label)) times the gradient of the row's loss.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sigma_kernels import counters
from sigma_kernels.cross_entropy.reference import IGNORED_LABEL
from sigma_kernels.row_tiles import dense_rows

IGNORED = tl.constexpr(IGNORED_LABEL)
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite: -inf - -inf would be NaN where only -inf has come yet
# A program holds 8192 logits of a row at a time, 32 in a thread: rows of any width share the binary.
TILE: dict[str, Any] = {"BLOCK_V": 8192, "num_warps": 8}


@triton.jit
def _cross_entropy_fwd_kernel(
    logits_ptr, labels_ptr, nats_ptr, largest_ptr, total_ptr, stride, width, BLOCK_V: tl.constexpr
):  # fmt: skip
    """One row a program: its loss, its largest logit, and the sum of the exponentials of what others are below it.

    Logits are compared with the largest before anything else is done to them: two large numbers cancel exactly.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    label = tl.load(labels_ptr + row)
    largest = tl.full((), LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, width, BLOCK_V):
        col = first + tl.arange(0, BLOCK_V)
        x = tl.load(logits_ptr + col, mask=col < width, other=float("-inf")).to(tl.float32)
        above = tl.maximum(largest, tl.max(x, axis=0))
        total = total * tl.exp2((largest - above) * LOG2_E) + tl.sum(tl.exp2((x - above) * LOG2_E), axis=0)
        largest = above
    known = (label >= 0) & (label < width)
    chosen = tl.load(logits_ptr + label, mask=known, other=float("nan")).to(tl.float32)
    nats = tl.where(label == IGNORED, 0.0, tl.log(total) - (chosen - largest))
    tl.store(nats_ptr + row, nats)
    tl.store(largest_ptr + row, largest)
    tl.store(total_ptr + row, total)


@triton.jit
def _cross_entropy_bwd_kernel(
    logits_ptr, labels_ptr, largest_ptr, total_ptr, dnats_ptr, dlogits_ptr, stride, stride_dnats, width,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Grid (rows, blocks of the vocabulary). A label outside the vocabulary gives NaN."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = col < width
    label = tl.load(labels_ptr + row)
    used = label != IGNORED
    known = (label >= 0) & (label < width)
    x = tl.load(logits_ptr + row * stride + col, mask=inside & used, other=0.0).to(tl.float32)
    dnats = tl.where(known, tl.load(dnats_ptr + row * stride_dnats), float("nan"))
    per_total = 1.0 / tl.load(total_ptr + row)  # one division a row
    probability = tl.exp2((x - tl.load(largest_ptr + row)) * LOG2_E) * per_total
    dlogits = tl.where(used, (probability - tl.where(col == label, 1.0, 0.0)) * dnats, 0.0)
    tl.store(dlogits_ptr + row * width + col, dlogits.to(dlogits_ptr.dtype.element_ty), mask=inside)


class CrossEntropyFn(torch.autograd.Function):
    """`apply(logits, labels)` -> nats."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        counters.add("cross_entropy.forward")
        labels = labels.contiguous()
        nats, largest, total = launch_forward(logits, labels)
        ctx.save_for_backward(logits, labels, largest, total)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnats: Tensor) -> tuple[Tensor, None]:
        counters.add("cross_entropy.backward")
        logits, labels, largest, total = ctx.saved_tensors
        return launch_backward(logits, labels, largest, total, dnats), None


def launch_forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss in nats, largest logit, sum of e^(logit - largest)), fp32 in the shape of `labels`, which are dense."""
    nats = torch.empty(labels.shape, dtype=torch.float32, device=logits.device)
    largest, total = torch.empty_like(nats), torch.empty_like(nats)
    if nats.numel() > 0:
        rows = dense_rows(logits)
        with torch.cuda.device_of(logits):
            _cross_entropy_fwd_kernel[(rows.shape[0],)](
                rows, labels, nats, largest, total, rows.stride(0), rows.shape[1], **TILE,
            )  # fmt: skip
    return nats, largest, total


def launch_backward(logits: Tensor, labels: Tensor, largest: Tensor, total: Tensor, dnats: Tensor) -> Tensor:
    """The gradient of the logits, dense, in their dtype."""
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if labels.numel() > 0:
        rows, dnats_rows = dense_rows(logits), dnats.reshape(-1)
        with torch.cuda.device_of(logits):
            _cross_entropy_bwd_kernel[rows.shape[0], -(-rows.shape[1] // TILE["BLOCK_V"])](
                rows, labels, largest, total, dnats_rows, dlogits,
                rows.stride(0), dnats_rows.stride(0), rows.shape[1], **TILE,
            )  # fmt: skip
    return dlogits
