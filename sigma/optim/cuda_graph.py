"""Capturing what a function launches as a CUDA graph, and whether a batch of matrices may be captured at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch

from sigma.optim.blocks import BlockBatch
from sigma.optim.matrix import MOMENTUM, Branch, RunBeside
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

    def capture(self, body: Callable[[RunBeside], None]) -> Replay:
        """Prepare what `body` launches, without running it. Raises RuntimeError where that fails.

        `body` may give launches that do not depend on each other to its argument.
        """
        ...

    def settle(self) -> None:
        """Wait until no graph runs, because all of them are let go now."""
        ...


class CudaGraphs:
    """torch.cuda.CUDAGraph. All graphs share one pool of memory: they run in turn, and leave nothing in it."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._streams: list[torch.cuda.Stream] = []
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

    def capture(self, body: Callable[[RunBeside], None]) -> Replay:
        """Waits for the device once, and gives the allocator's unused memory back: a capture cannot.

        Branches run beside each other, each with memory of its own. Only this thread is kept from what a capture
        forbids: another one may pin memory meanwhile.
        """
        graph = torch.cuda.CUDAGraph()
        how: dict[str, Any] = {"stream": self._stream(0), "capture_error_mode": "thread_local"}
        with ExitStack() as stack:
            stack.enter_context(torch.cuda.device(self._device))
            # torch.cuda.graph leaves its own stream behind as the current one when a capture fails
            stack.enter_context(torch.cuda.stream(torch.cuda.current_stream()))
            stack.enter_context(torch.cuda.graph(graph, pool=self._pool, **how))
            body(self._beside)
        self._pool = graph.pool()
        return lambda: self._replay(graph)

    def _stream(self, number: int) -> torch.cuda.Stream:
        while len(self._streams) <= number:
            self._streams.append(torch.cuda.Stream(self._device))
        return self._streams[number]

    def _beside(self, branches: Sequence[Branch]) -> None:
        """The first branch on the stream of the capture, every other one on a stream of its own.

        All come back to the first, whatever is raised: a capture that ends without that fails by itself, which hides
        the cause and leaves the allocator of torch below 2.12 in the capture (pytorch/pytorch#180395).
        """
        main, *others = (self._stream(number) for number in range(len(branches)))
        try:
            for stream in others:
                stream.wait_stream(main)
            for stream, branch in zip([main, *others], branches, strict=True):
                with torch.cuda.stream(stream):
                    branch()
        finally:
            for stream in others:
                main.wait_stream(stream)

    def _replay(self, graph: torch.cuda.CUDAGraph) -> None:
        with torch.cuda.device(self._device):
            graph.replay()

    def settle(self) -> None:
        """Wait for the device. The next graph gets a pool of its own: torch refuses one whose graphs are all gone."""
        torch.cuda.synchronize(self._device)
        self._pool = None
