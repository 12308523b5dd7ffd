"""The loss of the language model, as transformers calls it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.cross_entropy.reference import IGNORED_LABEL


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Mean cross-entropy in nats over the labels that are not -100; NaN when there is none.

    `transformers.loss.loss_utils.ForCausalLMLoss` without its copy of the logits in fp32: what a model's
    `loss_function` is, whatever else a caller hands through. `labels` `[B, T]` are aligned with the inputs, so position
    t predicts label t + 1; `shift_labels`, when given, are aligned with the logits `[B, T, vocab_size]`. The sum is
    divided by `num_items_in_batch` where a trainer counts the labels of several batches.
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=IGNORED_LABEL)[..., 1:]
    shift_labels = shift_labels.to(logits.device)
    total = cross_entropy(logits.view(*shift_labels.shape, vocab_size), shift_labels).sum()
    count = (shift_labels != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)
