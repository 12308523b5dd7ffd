"""Capturing what a function launches as a CUDA graph, and whether a batch of matrices may be captured at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch

from sigma.optim.blocks import BlockBatch
from sigma.optim.matrix import MOMENTUM
from sigma_kernels.matrix_step.op import why_reference

Replay = Callable[[], None]


class Graphs(Protocol):
    """What `GraphedStep` needs of a device. Tests have one without a GPU."""

    def why_never(self, batches: Sequence[BlockBatch]) -> str | None:
        """Why no step of this run can be captured, or None."""
        ...

    def why_not_now(self, batches: Sequence[BlockBatch]) -> str | None:
        """Why the step with these gradients must not be replayed, or None."""
        ...

    def capture(self, body: Callable[[], None]) -> Replay:
        """Prepare what `body` launches, without running it. Raises RuntimeError where that fails."""
        ...

    def settle(self) -> None:
        """Wait until no graph runs, because all of them are let go now."""
        ...


class CudaGraphs:
    """torch.cuda.CUDAGraph. All graphs share one pool of memory: they run in turn, and leave nothing in it."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._device = torch.device("cpu")

    def why_never(self, batches: Sequence[BlockBatch]) -> str | None:
        """The weights are not on one GPU, or only repeatable algorithms are allowed (`--deterministic`)."""
        devices = {batch.device for batch in batches}
        self._device = batches[0].device
        if len(devices) > 1:
            return "the weights are on several devices"
        if self._device.type != "cuda":
            return "the weights are not on a CUDA device"
        if torch.are_deterministic_algorithms_enabled():
            return "only repeatable algorithms are allowed"
        return None

    def why_not_now(self, batches: Sequence[BlockBatch]) -> str | None:
        """The kernels would not run: only they find gradients that have moved. Or another graph is being captured."""
        if torch.cuda.is_current_stream_capturing():
            return "another CUDA graph is being captured"
        for batch in batches:
            for tensors in (batch.present_gradients(), [part.parameter for part in batch.parts]):
                if (reason := why_reference(batch.state[MOMENTUM], tensors)) is not None:
                    return reason
        return None

    def capture(self, body: Callable[[], None]) -> Replay:
        """Waits for the device once, and gives the allocator's unused memory back: a capture cannot.

        Only this thread is kept from what a capture forbids: another one may pin memory meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream = self._stream or torch.cuda.Stream(self._device)
        how: dict[str, Any] = {"stream": self._stream, "capture_error_mode": "thread_local"}
        with ExitStack() as stack:
            stack.enter_context(torch.cuda.device(self._device))
            # torch.cuda.graph leaves its own stream behind as the current one when a capture fails
            stack.enter_context(torch.cuda.stream(torch.cuda.current_stream()))
            stack.enter_context(torch.cuda.graph(graph, pool=self._pool, **how))
            body()
        self._pool = graph.pool()
        return lambda: self._replay(graph)

    def _replay(self, graph: torch.cuda.CUDAGraph) -> None:
        with torch.cuda.device(self._device):
            graph.replay()

    def settle(self) -> None:
        """Wait for the device. The next graph gets a pool of its own: torch refuses one whose graphs are all gone."""
        torch.cuda.synchronize(self._device)
        self._pool = None
