"""Which steps may become a CUDA graph; capturing itself needs a GPU (tests/gpu/test_graphed_step.py)."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sigma.optim.blocks import BlockBatch
from sigma.optim.cuda_graph import CudaGraphs
from sigma_kernels import dispatch
from tests.unit.optim.conftest import make_set, step


def batches_of(**flags: Any) -> list[BlockBatch]:
    optimizers = make_set(**flags)
    step(optimizers, 1)
    assert optimizers.matrix is not None
    return optimizers.matrix.batches


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[BlockBatch]:
    """As on a GPU: nothing but the tensors themselves can be in the way."""
    made = batches_of()
    monkeypatch.setattr(dispatch, "why_not_triton", lambda *tensors: None)
    monkeypatch.setattr(dispatch, "interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return made


def on(*devices: str) -> Any:
    return [SimpleNamespace(device=torch.device(device)) for device in devices]


def test_weights_on_the_cpu_are_never_captured() -> None:
    assert CudaGraphs().why_never(batches_of()) == "the weights are not on a CUDA device"


def test_several_devices_are_never_captured() -> None:
    assert CudaGraphs().why_never(on("cuda:0", "cuda:1")) == "the weights are on several devices"


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "free"])
def test_a_run_of_repeatable_algorithms_is_never_captured(monkeypatch: pytest.MonkeyPatch, strict: bool) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: strict)
    expected = "only repeatable algorithms are allowed" if strict else None
    assert CudaGraphs().why_never(on("cuda:0", "cuda:0")) == expected


def test_what_the_kernels_take_is_captured_and_what_they_do_not_take_is_not(
    monkeypatch: pytest.MonkeyPatch, batches: list[BlockBatch]
) -> None:
    graphs = CudaGraphs()
    assert graphs.why_not_now(batches) is None
    (batch,) = [b for b in batches if any(part.name == "w" for part in b.parts)]
    first = batch.parts[0].parameter
    first.grad = None
    assert graphs.why_not_now(batches) is None, "an absent gradient is in the table"
    first.grad = torch.randn(first.shape[::-1]).T
    assert graphs.why_not_now(batches) == "a tensor is not contiguous"
    first.grad = torch.randn(first.shape)
    first.data = first.data.bfloat16()
    assert graphs.why_not_now(batches) == "the tensors have several types"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert graphs.why_not_now(batches) == "another CUDA graph is being captured"


def test_the_reference_is_never_captured(batches: list[BlockBatch]) -> None:
    """It reads gradients where they were, not through the tables."""
    with dispatch.using("reference"):
        assert CudaGraphs().why_not_now(batches) == "the reference was asked for"


class FakeStream:
    """Writes what it is given into a common list."""

    def __init__(self, name: str, written: list[str]) -> None:
        self.name, self.written = name, written

    def wait_stream(self, other: "FakeStream") -> None:
        self.written.append(f"{self.name} waits for {other.name}")


@pytest.mark.parametrize("fails", [None, "large", "small"])
def test_branches_leave_the_stream_of_the_capture_and_come_back_whatever_they_raise(
    monkeypatch: pytest.MonkeyPatch, fails: str | None
) -> None:
    written: list[str] = []

    @contextmanager
    def on_stream(stream: FakeStream) -> Any:
        written.append(f"on {stream.name}")
        yield

    def branch(name: str) -> None:
        if name == fails:
            raise torch.OutOfMemoryError(name)

    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    graphs = CudaGraphs()
    graphs._streams = [FakeStream("main", written), FakeStream("other", written)]  # type: ignore[list-item]
    branches = [lambda: branch("large"), lambda: branch("small")]
    if fails is None:
        graphs._beside(branches)
    else:
        with pytest.raises(torch.OutOfMemoryError, match=fails):
            graphs._beside(branches)
    assert written[0] == "other waits for main"
    assert written[-1] == "main waits for other"
    assert "on other" in written or fails == "large"
