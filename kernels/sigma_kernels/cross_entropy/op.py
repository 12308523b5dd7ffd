"""The public cross-entropy: checks the shapes, asks dispatch, and counts."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels import dispatch
from sigma_kernels.counted import count_reference
from sigma_kernels.cross_entropy.reference import cross_entropy_reference
from sigma_kernels.row_tiles import FLOATS


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] in nats for each label; the Triton kernel on CUDA, the reference elsewhere.

    The kernel keeps the logits as they are and two numbers a row: no copy in fp32, no matrix of probabilities. Counts
    `cross_entropy.forward` and `cross_entropy.backward`.

    Args:
        logits: `[..., V]`, any strides.
        labels: int64 `[...]`, 0 to V - 1, or -100 where nothing is predicted.

    Returns:
        `[...]`, fp32 (fp64 for fp64 logits): 0 where the label is -100. The kernel, which cannot raise, gives NaN to
        any other label outside the vocabulary; the reference raises IndexError.

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    if logits.ndim == 0 or logits.shape[:-1] != labels.shape or logits.shape[-1] == 0:
        raise ValueError(f"cross_entropy: labels are {list(labels.shape)}, logits {list(logits.shape)} do not fit")
    if labels.dtype != torch.int64 or not logits.is_floating_point():
        raise ValueError(f"cross_entropy: labels are int64 and logits floats, not {labels.dtype} and {logits.dtype}")
    limit = None if logits.dtype in FLOATS else f"the kernel does not take logits in {logits.dtype}"
    if dispatch.use_triton("cross_entropy", logits, labels, limit=limit):
        from sigma_kernels.cross_entropy.kernel import CrossEntropyFn

        return CrossEntropyFn.apply(logits, labels)
    return count_reference("cross_entropy", cross_entropy_reference(logits, labels))[0]
