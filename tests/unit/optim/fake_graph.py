"""CUDA graphs without a GPU: a captured step does nothing; a replay repeats its operations on the same tensors.

As on a GPU, gradients alone are found through tables: an operation on a gradient is repeated with what the table holds
at the replay. What the host did in the captured step is not repeated, and waiting for the device is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from sigma.optim.blocks import BlockBatch
from sigma.optim.build import OptimizerSet
from sigma.optim.graphed_step import GraphedStep
from sigma.optim.matrix import Branch, RunBeside
from sigma_kernels.matrix_step.blocks import ABSENT, BlockList, BlockTable
from tests.unit.optim.conftest import make_set

WAITING = {"_local_scalar_dense", "nonzero", "equal"}


def write_table(blocks: BlockList, what: str, tensors: Sequence[Tensor | None]) -> None:
    """In place of `BlockList.table`, which launches a kernel: the table is the list of tensors."""
    held = vars(blocks).setdefault("held", {})
    held[what] = list(tensors)
    vars(blocks)["writes"] = vars(blocks).get("writes", 0) + 1
    addresses = tuple(ABSENT if t is None else t.data_ptr() for t in tensors)
    blocks._tables[what] = BlockTable(torch.empty(0), torch.empty(0), torch.empty(0), addresses)


class Tape(TorchDispatchMode):
    """Notes every operation, and what was in the tensors that they overwrite."""

    def __init__(self, gradients: dict[int, tuple[BlockList, int]]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.overwritten: list[tuple[Tensor, Tensor]] = []
        self._gradients = gradients

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in WAITING:
            raise RuntimeError("operation not permitted when stream is capturing")
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                target = kwargs[argument.name] if argument.name in kwargs else args[number]
                self.overwritten.append((target, target.clone()))
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        """Put back what was overwritten: a capture runs nothing."""
        for target, before in reversed(self.overwritten):
            target.copy_(before)

    def replay(self) -> None:
        """Every operation again, on the tensors of the capture and what was made of them."""
        now: dict[int, Any] = {}
        for key, (blocks, p) in self._gradients.items():
            found = vars(blocks)["held"]["gradients"][p]
            now[key] = torch.zeros(blocks.shapes[p]) if found is None else found
        for func, args, kwargs, out in self.calls:
            given = tree_map(lambda t: now.get(id(t), t) if isinstance(t, Tensor) else t, (args, kwargs))
            fresh = func(*given[0], **given[1])
            now.update({id(a): b for a, b in zip(tree_flatten(out)[0], tree_flatten(fresh)[0], strict=True)})


def backwards(branches: Sequence[Branch]) -> None:
    """Their order must not matter."""
    for branch in branches[::-1]:
        branch()


class FakeGraphs:
    """In place of `CudaGraphs`; the reasons and the error are what a test sets."""

    def __init__(self) -> None:
        self.never: str | None = None
        self.not_now: str | None = None
        self.error: RuntimeError | None = None
        self.captures = self.replays = self.settled = 0
        self.batches: Sequence[BlockBatch] = ()

    def why_never(self, batches: Sequence[BlockBatch]) -> str | None:
        self.batches = batches
        return self.never

    def why_not_now(self, batches: Sequence[BlockBatch]) -> str | None:
        return self.not_now

    def capture(self, body: Callable[[RunBeside], None]) -> Callable[[], None]:
        self.captures += 1
        if self.error is not None:
            raise self.error
        parameters = [part.parameter for b in self.batches for part in b.parts]
        absent = [p for p in parameters if p.grad is None]
        for p in absent:
            p.grad = torch.zeros_like(
                p
            )  # the kernels ask the table whether a gradient is there, the reference the host
        parts = [(b.blocks, p, part.parameter.grad) for b in self.batches for p, part in enumerate(b.parts)]
        writes = [vars(b.blocks)["writes"] for b in self.batches]
        tape = Tape({id(grad): (blocks, p) for blocks, p, grad in parts})
        vars(tape)["alive"] = parts  # the keys are addresses of these objects
        try:
            with tape:
                body(backwards)
        finally:
            tape.undo()
            for p in absent:
                p.grad = None
        assert writes == [vars(b.blocks)["writes"] for b in self.batches], "a table was written inside of a graph"

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay

    def settle(self) -> None:
        self.settled += 1


def graphed_set(monkeypatch: pytest.MonkeyPatch, **flags: Any) -> tuple[OptimizerSet, FakeGraphs, list[str]]:
    """Optimizers whose matrix step is replayed from fake graphs, and the reasons that they tell."""
    monkeypatch.setattr(BlockList, "table", write_table)
    monkeypatch.setattr("sigma.optim.matrix.BESIDE", 0.8)  # batches of all shapes have about one size here
    return graph(make_set(**flags))


def graph(optimizers: OptimizerSet, graphs: FakeGraphs | None = None) -> tuple[OptimizerSet, FakeGraphs, list[str]]:
    """The same for optimizers that are there."""
    assert optimizers.matrix is not None
    graphs, told = graphs or FakeGraphs(), []
    optimizers.graphed = GraphedStep(optimizers.matrix, graphs)
    optimizers.listen(lambda event, reason: told.append(f"{event}: {reason}"))
    return optimizers, graphs, told
