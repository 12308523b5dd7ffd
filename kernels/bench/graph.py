"""Replays of a CUDA graph as something to time: the device's part alone, without the host's launches."""

from __future__ import annotations

from collections.abc import Callable

import torch

Step = Callable[[], object]


def captured(step: Step) -> Step:
    """The replay of one step, after some that make state and kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda: (graph.replay(), step)[0]  # the step holds the memory that the graph reads
