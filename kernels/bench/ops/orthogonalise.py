"""Orthogonalisation of batches of matrices: ours, the same in PyTorch, and torch.optim.Muon's one matrix at a time.

The floor counts symmetric products at half their cost, for all providers; a provider that computes both halves cannot
reach it. 60 % of it at n >= 768 is the bar. `product` is one large product of the vendor's library, which says how much
of the floor's fixed rate a device gives under its limit of power in the same minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from floors import MATRIX, Work, orthogonalise_flops
from graph import captured
from registry import Case, benchmark
from torch import Tensor

from sigma_kernels import dispatch
from sigma_kernels.orthogonalise.op import orthogonalise
from sigma_kernels.orthogonalise.reference import newton_schulz_reference

# (matrices, rows, columns): those of the presets and wider ones; each batch has at least 32 M elements.
SHAPES = [
    (324, 512, 512), (128, 512, 1024), (64, 768, 768), (48, 768, 1536), (32, 1024, 1024), (36, 896, 1024),
    (32, 1536, 1152), (16, 1536, 3072), (12, 3072, 1536), (8, 2048, 2048), (4, 2048, 8192), (2, 4096, 4096),
]  # fmt: skip


def sigma(x: Tensor) -> Callable[[], object]:
    """Our op, in the form that it chooses."""
    return lambda: orthogonalise(x)


def sigma_graph(x: Tensor) -> Callable[[], object]:
    """Our op from a CUDA graph, as in the trainer's step: a batch is dozens of launches."""
    return captured(lambda: orthogonalise(x))


def direct(x: Tensor) -> Callable[[], object]:
    """Our op in the direct form."""
    return lambda: orthogonalise(x, form="direct")


def gram(x: Tensor) -> Callable[[], object]:
    """Our op in the Gram form."""
    return lambda: orthogonalise(x, form="gram")


def eager(x: Tensor) -> Callable[[], object]:
    """The same by the reference."""
    return dispatch.using("reference")(lambda: orthogonalise(x))


def torch_muon(x: Tensor) -> Callable[[], object]:
    """torch.optim.Muon's iteration, one matrix after another as it does."""
    return lambda: [newton_schulz_reference(matrix[None]) for matrix in x]


def product(x: Tensor) -> Callable[[], object]:
    """The product of two square matrices in fp16, by the vendor's library."""
    left, right = x.half()
    return lambda: left @ right


PROVIDERS = {
    "sigma": sigma,
    "sigma-graph": sigma_graph,
    "sigma-direct": direct,
    "sigma-gram": gram,
    "eager": eager,
    "torch-muon": torch_muon,
}


@dataclass
class Run:
    """What a case runs; its input exists from `setup` on."""

    provider: Callable[[Tensor], Callable[[], object]]
    shape: tuple[int, ...]
    _held: list[Any] = field(default_factory=list)

    def setup(self) -> None:
        """Make the input."""
        generator = torch.Generator("cuda").manual_seed(0)
        x = torch.randn(*self.shape, device="cuda", generator=generator).bfloat16()
        self._held = [self.provider(x)]

    def __call__(self) -> object:
        return self._held[0]()


def case(name: str, provider: str, run: Run, work: Work) -> Case:
    """bf16 in, half precision out."""
    return Case(
        shape=name,
        dtype="half",
        provider=provider,
        direction="forward",
        bytes=work.bytes,
        run=run,
        work=(work,),
        setup=run.setup,
    )


@benchmark("orthogonalise")
def cases() -> Iterator[list[Case]]:
    """A large product, and what it is timed in turn with."""
    for shape in SHAPES:
        count, rows, columns = shape
        name = f"{count}x{rows}x{columns}"
        large = Work(6 * MATRIX**2, 2 * MATRIX**3)
        own = Work(4 * count * rows * columns, count * orthogonalise_flops(rows, columns))
        yield [
            case(f"{MATRIX}x{MATRIX}x{MATRIX} beside {name}", "product", Run(product, (2, MATRIX, MATRIX)), large),
            *(case(name, provider, Run(make, shape), own) for provider, make in PROVIDERS.items()),
        ]
