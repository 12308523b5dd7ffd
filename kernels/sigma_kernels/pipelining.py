"""Whether loops in kernels load for coming turns while they work on this one. A self-test may switch that off.

Some versions of Triton compile pipelined loops wrongly for some architectures (on Blackwell: state-spaces/mamba #997),
and nothing but the numbers shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from sigma_kernels import counters

AGREEMENT = 1e-3  # relative distance; a loop that is compiled wrongly is off by far more

_on = True


def stages(wanted: int) -> int:
    """`num_stages` of a loop: `wanted`, or 1 where pipelining is switched off."""
    return wanted if _on else 1


def is_on() -> bool:
    """Whether loops are pipelined."""
    return _on


def switch(on: bool) -> None:
    """Pipeline loops or not, from here on."""
    global _on
    _on = on


@contextmanager
def switched_off() -> Iterator[None]:
    """No pipelines inside the block."""
    before = _on
    switch(False)
    try:
        yield
    finally:
        switch(before)


Ops = Mapping[str, Callable[[], Sequence[Tensor]]]


def both_ways(ops: Ops) -> dict[str, tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """What each op computes with pipelines, and without."""
    found = {}
    for name, compute in ops.items():
        pipelined = compute()
        with switched_off():
            found[name] = pipelined, compute()
    return found


def check(ops: Ops) -> list[str]:
    """Compare what each op computes with and without pipelines; switches them off, for all, when one differs.

    Returns the names of the ops that differ. Counts `pipelining.checked` and `pipelining.differs`.
    """
    differing = []
    for name, (pipelined, plain) in both_ways(ops).items():
        counters.add("pipelining.checked")
        if not all(_agree(a, b) for a, b in zip(pipelined, plain, strict=True)):
            counters.add("pipelining.differs")
            differing.append(name)
    if differing:
        switch(False)
    return differing


def _agree(a: Tensor, b: Tensor) -> bool:
    a, b = a.double(), b.double()
    return bool(torch.linalg.vector_norm(a - b) <= AGREEMENT * torch.linalg.vector_norm(b))  # False for NaN
