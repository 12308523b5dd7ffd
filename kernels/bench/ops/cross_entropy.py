"""Cross-entropy of each label from bf16 logits: the kernel, PyTorch in fp32 as transformers does, and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from floors import Work
from registry import Case, benchmark
from torch import Tensor

from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.cross_entropy.reference import cross_entropy_reference

SHAPES = [(65536, 8192), (16384, 50304), (8192, 128256)]

Loss = Callable[[Tensor, Tensor], Tensor]


def providers() -> dict[str, Loss]:
    """All take (logits, labels)."""
    compiled = torch.compile(cross_entropy_reference, dynamic=False)
    return {"sigma": cross_entropy, "eager": cross_entropy_reference, "compiled": compiled}


def both(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward of the mean."""
    return torch.autograd.grad(loss(logits, labels).mean(), logits)


@benchmark("cross_entropy")
def cases() -> Iterator[Case]:
    """Forward reads the logits once; the backward reads them again and writes their gradient."""
    for rows, width in SHAPES:
        generator = torch.Generator("cuda").manual_seed(0)
        logits = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, generator=generator).requires_grad_()
        labels = torch.randint(width, (rows,), device="cuda", generator=generator)
        least = logits.nbytes
        for name, loss in providers().items():
            where = {"shape": f"{rows}x{width}", "dtype": "bfloat16", "provider": name}
            work = (Work(least, 0), Work(2 * least, 0))
            yield Case(**where, direction="forward", bytes=least, work=work[:1], run=partial(loss, logits, labels))
            yield Case(
                **where,
                direction="forward+backward",
                bytes=3 * least,
                work=work,
                run=partial(both, loss, logits, labels),
            )
