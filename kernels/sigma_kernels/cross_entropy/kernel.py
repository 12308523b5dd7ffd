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
LN_2 = tl.constexpr(0.6931471805599453)
# A program holds 8192 logits of a row at a time, 32 in a thread: rows of any width share the binary.
TILE: dict[str, Any] = {"BLOCK_V": 8192, "num_warps": 8}


@triton.jit
def _cross_entropy_fwd_kernel(
    logits_ptr, labels_ptr, nats_ptr, log_sum_ptr, stride, width, BLOCK_V: tl.constexpr
):  # fmt: skip
    """One row a program: its loss, and log2 of the sum of its exponentials."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    label = tl.load(labels_ptr + row)
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, width, BLOCK_V):
        col = first + tl.arange(0, BLOCK_V)
        x = tl.load(logits_ptr + col, mask=col < width, other=float("-inf")).to(tl.float32) * LOG2_E
        above = tl.maximum(largest, tl.max(x, axis=0))
        # -inf - -inf would be NaN where nothing finite has come yet
        zero = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp2(largest - zero) + tl.sum(tl.exp2(x - zero), axis=0)
        largest = above
    log_sum = largest + tl.log2(total)
    known = (label >= 0) & (label < width)
    chosen = tl.load(logits_ptr + label, mask=known, other=float("nan")).to(tl.float32)
    nats = tl.where(label == IGNORED, 0.0, log_sum * LN_2 - chosen)
    tl.store(nats_ptr + row, nats)
    tl.store(log_sum_ptr + row, log_sum)


@triton.jit
def _cross_entropy_bwd_kernel(
    logits_ptr, labels_ptr, log_sum_ptr, dnats_ptr, dlogits_ptr, stride, stride_dnats, width, BLOCK_V: tl.constexpr
):  # fmt: skip
    """Grid (rows, blocks of the vocabulary)."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = col < width
    label = tl.load(labels_ptr + row)
    used = label != IGNORED
    x = tl.load(logits_ptr + row * stride + col, mask=inside & used, other=0.0).to(tl.float32) * LOG2_E
    dnats = tl.load(dnats_ptr + row * stride_dnats)
    probability = tl.exp2(x - tl.load(log_sum_ptr + row))
    dlogits = tl.where(used, (probability - tl.where(col == label, 1.0, 0.0)) * dnats, 0.0)
    tl.store(dlogits_ptr + row * width + col, dlogits.to(dlogits_ptr.dtype.element_ty), mask=inside)


class CrossEntropyFn(torch.autograd.Function):
    """`apply(logits, labels)` -> nats."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        counters.add("cross_entropy.forward")
        nats, log_sum = launch_forward(logits, labels)
        ctx.save_for_backward(logits, labels, log_sum)
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dnats: Tensor) -> tuple[Tensor, None]:
        counters.add("cross_entropy.backward")
        logits, labels, log_sum = ctx.saved_tensors
        return launch_backward(logits, labels, log_sum, dnats), None


def launch_forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss in nats, log2 of the sum of exponentials), fp32 in the shape of `labels`."""
    nats = torch.empty(labels.shape, dtype=torch.float32, device=logits.device)
    log_sum = torch.empty_like(nats)
    if nats.numel() > 0:
        rows = dense_rows(logits)
        with torch.cuda.device_of(logits):
            _cross_entropy_fwd_kernel[(rows.shape[0],)](
                rows, labels.contiguous(), nats, log_sum, rows.stride(0), rows.shape[1], **TILE,
            )  # fmt: skip
    return nats, log_sum


def launch_backward(logits: Tensor, labels: Tensor, log_sum: Tensor, dnats: Tensor) -> Tensor:
    """The gradient of the logits, dense, in their dtype."""
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if log_sum.numel() > 0:
        rows, dnats_rows = dense_rows(logits), dnats.reshape(-1)
        with torch.cuda.device_of(logits):
            _cross_entropy_bwd_kernel[rows.shape[0], triton.cdiv(rows.shape[1], TILE["BLOCK_V"])](
                rows, labels.contiguous(), log_sum, dnats_rows, dlogits,
                rows.stride(0), dnats_rows.stride(0), rows.shape[1], **TILE,
            )  # fmt: skip
    return dlogits
