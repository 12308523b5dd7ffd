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
    ignore_index: int = IGNORED_LABEL,
    shift_labels: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Mean cross-entropy in nats over the labels that are not `ignore_index`; NaN when there is none.

    What `transformers.loss.loss_utils.ForCausalLMLoss` computes, without a copy of the logits in fp32 on a GPU. Like
    it, it takes whatever else a caller hands through to the model. `labels` `[B, T]` are aligned with the inputs:
    position t predicts label t + 1; `shift_labels`, when given, are aligned with the logits `[B, T, vocab_size]`, flat
    or not. The sum is divided by `num_items_in_batch` where a trainer counts the labels of several batches.

    Raises ValueError without labels.
    """
    if shift_labels is None:
        if labels is None:
            raise ValueError("a loss needs labels or shift_labels")
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    used = shift_labels.to(logits.device)
    if ignore_index != IGNORED_LABEL:
        used = used.masked_fill(used == ignore_index, IGNORED_LABEL)
    total = cross_entropy(logits.reshape(*used.shape, vocab_size), used).sum()
    count = (used != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)
