"""The public momentum and weight steps and squares of rows over a batch of matrices: check, ask dispatch, count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sigma_kernels import counters, dispatch
from sigma_kernels.matrix_step.blocks import BlockList
from sigma_kernels.matrix_step.reference import (
    Decay,
    Form,
    momentum_step_reference,
    row_squares_reference,
    weight_step_reference,
)

ROW_TYPES = torch.float32, torch.bfloat16, torch.float16


def momentum_step(
    blocks: BlockList,
    gradients: Sequence[Tensor | None],
    momentum_KMN: Tensor,
    scale: Tensor | None = None,
    *,
    beta: float,
    form: Form = "nesterov",
    found_inf: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor]:
    """M <- beta M + (1 - beta) G in place; returns (what to orthogonalise `[K, m, n]`, int32 `[K]`: 1 for G != 0).

    `nesterov` is (1 - beta) G + beta M, `average` M, `sign` the sign of M; in `dtype`, from the unrounded M.

    Args:
        blocks: where the K matrices lie in the gradients.
        gradients: one tensor for each parameter of `blocks`; None counts as zero.
        momentum_KMN: fp32, bf16, or int8 with `scale` (`codes.BLOCK` elements share one).
        scale: fp32 `[K, blocks]` for int8.
        found_inf: a device scalar; 1 leaves momentum and scale as they are. What is returned is then of no use.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    shape = (blocks.count, blocks.rows, blocks.columns)
    if tuple(momentum_KMN.shape) != shape or (momentum_KMN.dtype == torch.int8) != (scale is not None):
        raise ValueError(f"momentum_step: momentum is {momentum_KMN.dtype} {tuple(momentum_KMN.shape)}, not {shape}")
    if not all(t.is_contiguous() for t in (momentum_KMN, scale) if t is not None):
        raise ValueError("momentum_step: momentum and scale must be contiguous")
    counters.add("matrix_step.momentum")
    present = [g for g in gradients if g is not None]
    if dispatch.use_triton("matrix_step", momentum_KMN, limit=_limit(present)):
        from sigma_kernels.matrix_step.kernel import launch_momentum_step as run
    else:
        run = momentum_step_reference
    return run(blocks, gradients, momentum_KMN, scale, beta=beta, form=form, found_inf=found_inf, dtype=dtype)


def weight_step(
    blocks: BlockList,
    weights: Sequence[Tensor],
    direction_KMN: Tensor,
    rate_K: Tensor,
    decay_K: Tensor,
    *,
    active_K: Tensor,
    scale: Tensor | None = None,
    residual_KMN: Tensor | None = None,
    decay: Decay = "plain",
    found_inf: Tensor | None = None,
) -> None:
    """W <- decay_K W - rate_K scale D in place, in fp32; blocks with `active_K` 0 stay as they are.

    `cautious` decays only elements with D W >= 0 (arXiv:2510.12402); `prox` decays after the step: with
    decay_K = 1 / (1 + rate * decay) it is the closed-form proximal step of an L2 penalty.

    Args:
        blocks: where the K matrices lie in the weights.
        weights: contiguous parameters, fp32, or bf16 with `residual_KMN`.
        direction_KMN: D, bf16 or fp32.
        rate_K, decay_K: fp32.
        scale: fp32, `[K, 1, 1]`, `[K, m, 1]` or `[K, 1, n]`.
        residual_KMN: int8 (`codes.encode_residual`).
        found_inf: a device scalar; 1 leaves everything as it is.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    shape = (blocks.count, blocks.rows, blocks.columns)
    if tuple(direction_KMN.shape) != shape:
        raise ValueError(f"weight_step: direction is {tuple(direction_KMN.shape)}, not {shape}")
    if scale is not None and tuple(scale.shape) not in {(shape[0], 1, 1), (*shape[:2], 1), (shape[0], 1, shape[2])}:
        raise ValueError(f"weight_step: scale is {tuple(scale.shape)}, which does not fit {shape}")
    if residual_KMN is not None and (tuple(residual_KMN.shape) != shape or not residual_KMN.is_contiguous()):
        raise ValueError(f"weight_step: residual is {tuple(residual_KMN.shape)}, not a contiguous {shape}")
    counters.add("matrix_step.weight")
    if dispatch.use_triton("matrix_step", direction_KMN, limit=_limit(weights)):
        from sigma_kernels.matrix_step.kernel import launch_weight_step as run
    else:
        run = weight_step_reference
    run(
        blocks, weights, residual_KMN, direction_KMN, scale, rate_K, decay_K,
        active_K=active_K, decay=decay, found_inf=found_inf,
    )  # fmt: skip


@torch.no_grad()
def row_squares(x_KMN: Tensor) -> Tensor:
    """The sum of squares of each row, fp32 `[K, m]`. Not differentiable.

    Args:
        x_KMN: fp32, bf16 or fp16; the kernel takes it where one of the last two axes has stride 1.

    Raises:
        ValueError: x is no batch of matrices of such a type.
    """
    if x_KMN.ndim != 3 or 0 in x_KMN.shape or x_KMN.dtype not in ROW_TYPES:
        raise ValueError(
            f"row_squares: x must be a batch of fp32, bf16 or fp16 matrices, it is {x_KMN.dtype} {tuple(x_KMN.shape)}"
        )
    counters.add("matrix_step.row_squares")
    limit = None if 1 in x_KMN.stride()[1:] else "neither rows nor columns are contiguous"
    if dispatch.use_triton("matrix_step", x_KMN, limit=limit):
        from sigma_kernels.matrix_step.row_squares_kernel import launch_row_squares as run
    else:
        run = row_squares_reference
    return run(x_KMN)


def why_reference(momentum_KMN: Tensor, tensors: Sequence[Tensor]) -> str | None:
    """The reason why these gradients or weights would go to the reference, or None for the kernel."""
    return dispatch.why_reference(momentum_KMN, limit=_limit(tensors))


def _limit(tensors: Sequence[Tensor]) -> str | None:
    if any(not t.is_contiguous() for t in tensors):
        return "a tensor is not contiguous"
    if len({t.dtype for t in tensors}) > 1:
        return "the tensors have several types"
    return None
