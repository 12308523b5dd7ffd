"""Cross-entropy of each label in plain PyTorch: the specification of the op, and what runs where Triton cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED_LABEL = -100
"""Of a position that predicts nothing: its loss and its gradient are zero."""


def cross_entropy_reference(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] in nats for each label, at least in fp32; 0 where the label is -100.

    Args:
        logits: `[..., V]`.
        labels: int64 `[...]`, 0 to V - 1 or -100.

    Returns:
        `[...]`, fp32 (fp64 for fp64 logits).

    Raises:
        IndexError: a label is outside the vocabulary.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32)).reshape(-1, logits.shape[-1])
    nats = F.cross_entropy(exact, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    return nats.view(labels.shape)
