"""Cross-entropy of each label from bf16 logits: the kernel, PyTorch in fp32 as transformers does, and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from floors import Work
from registry import Case, benchmark
from torch import Tensor

from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.cross_entropy.reference import cross_entropy_reference

SHAPES = [(65536, 8192), (16384, 50304), (8192, 128256)]

PROVIDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigma": cross_entropy,
    "eager": cross_entropy_reference,
    "compiled": torch.compile(cross_entropy_reference, dynamic=False),
}


@dataclass
class Run:
    """What a case runs; its inputs exist from `setup` on."""

    provider: Callable[[Tensor, Tensor], Tensor]
    shape: tuple[int, int]
    both: bool
    _held: list[Any] = field(default_factory=list)

    def setup(self) -> None:
        """Make the inputs."""
        rows, width = self.shape
        generator = torch.Generator("cuda").manual_seed(0)
        logits = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, generator=generator)
        labels = torch.randint(width, (rows,), device="cuda", generator=generator)
        self._held = [logits.requires_grad_(self.both), labels]

    def __call__(self) -> object:
        logits, labels = self._held
        nats = self.provider(logits, labels).mean()
        return torch.autograd.grad(nats, logits) if self.both else nats


@benchmark("cross_entropy")
def cases() -> Iterator[list[Case]]:
    """Reads the logits once forward; reads them again and writes their gradient backward."""
    for shape in SHAPES:
        for both in (False, True):
            least = (3 if both else 1) * 2 * shape[0] * shape[1]
            group = []
            for name, provider in PROVIDERS.items():
                run = Run(provider, shape, both)
                group.append(
                    Case(
                        shape=f"{shape[0]}x{shape[1]}",
                        dtype="bfloat16",
                        provider=name,
                        direction="forward+backward" if both else "forward",
                        bytes=least,
                        work=(Work(least, 0),),
                        run=run,
                        setup=run.setup,
                    )
                )
            yield group
