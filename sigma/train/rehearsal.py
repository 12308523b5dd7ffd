"""A step that launches what a real one does and leaves nothing behind; for `sigma_kernels.ahead`.

The kernels' outputs may be uninitialised: every number in here is of no consequence.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.model.bitlinear import new_weight_epoch
from sigma.optim.build import OptimizerSet
from sigma.train.feature import Context
from sigma.train.kernel_stamp import KernelStamp
from sigma.train.step import Stepper, is_out_of_memory
from sigma_kernels.ahead import KernelsAhead

FEW = 2
"""Parameters of a batch of matrices that stand for all: a batch of one has other strides."""


Few = dict[str, Parameter]


def make_kernels(
    stamp: KernelStamp | None, stepper: Stepper, twin_of: Callable[[Few], OptimizerSet], length: int
) -> dict[str, float]:
    """Compile what the first step launches; returns columns of the startup row. Off a GPU there is nothing to do.

    Where a start like this one has left its stamp, nothing is rehearsed: the step loads its kernels from the cache. The
    longer part, the model's, is compiled while the optimizer's is rehearsed, on a twin of it over few parameters.
    """
    if stamp is None:
        return {}
    began = time.perf_counter()
    ready = 0 if stamp.is_left() else _compile(stepper, twin_of, length)
    return {"kernels_ahead": ready, "startup_kernels_s": time.perf_counter() - began}


def _compile(stepper: Stepper, twin_of: Callable[[Few], OptimizerSet], length: int) -> int:
    ctx, device = stepper.context(), stepper.settings.device
    with KernelsAhead() as kernels:
        with kernels.rehearsal():
            rehearse_model(ctx, stepper.settings.micro_batch, length)
        if few := few_of_each(stepper.optimizers):
            with kernels.rehearsal():
                rehearse_optimizer(ctx, twin_of(few))
        ready = kernels.wait()
    if device.type == "cuda":  # a run that goes on with a smaller micro-batch would report the rehearsal's as its own
        torch.cuda.reset_peak_memory_stats(device)
    return ready


@dataclass(frozen=True)
class BlankBatch:
    """Rows that are one token over and over."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    segments_BT: Tensor


def blank_batch(rows: int, length: int, documents: int) -> BlankBatch:
    """Zeros, on the host as every batch; each row is so many documents."""
    ids = torch.zeros(rows, length, dtype=torch.int64)
    segment_T = (torch.arange(length) * documents // length).to(torch.int32)
    return BlankBatch(ids, ids.clone(), segment_T.repeat(rows, 1))


def rehearse_model(ctx: Context, rows: int, length: int) -> None:
    """Forward and backward of micro-batches through one layer of each kind: the scan has other kernels for packed rows.

    Where memory runs out it ends early: the real step then runs out of memory too, and halves its micro-batch.
    """
    weights = [p for p in ctx.model.parameters() if p.requires_grad]
    try:
        with ctx.undone(), ctx.model.one_layer_of_each_kind():
            for documents in (2, 1):
                _forward_backward(ctx, blank_batch(rows, length, documents), weights)
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        new_weight_epoch(ctx.model)
    # torch would keep what it has freed, and the driver have nothing to load kernels into
    gc.collect()
    torch.cuda.empty_cache()


def _forward_backward(ctx: Context, batch: BlankBatch, weights: Sequence[Parameter]) -> None:
    loss = ctx.loss(batch, slice(0, batch.input_ids_BT.size(0)))
    torch.autograd.grad(loss, weights, allow_unused=True)


def few_of_each(optimizers: OptimizerSet) -> Few:
    """Of each batch of the matrix optimizer the parameters of the first two parts; empty where there is none."""
    batches = [] if optimizers.matrix is None else optimizers.matrix.batches
    return {part.name: part.parameter for batch in batches for part in batch.parts[:FEW]}


def rehearse_optimizer(ctx: Context, twin: OptimizerSet) -> None:
    """The first step of a matrix optimizer that is thrown away after it, over `few_of_each` of the real one.

    The weights stay: the step is one that `found_inf` skips. They also stand in for their gradients.
    """
    if twin.matrix is None:
        return
    device = next(iter(twin.parameters.values())).device
    twin.matrix.found_inf, twin.matrix.clip = torch.ones(2, device=device)
    with ctx.undone():
        for parameter in twin.parameters.values():
            parameter.grad = parameter.detach()
        try:
            twin.matrix.step()
        finally:
            twin.zero_grad()
