"""A GPU that Triton compiles for and that runs nothing: launches are counted, tensors are the CPU's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sigma_kernels import architecture, dispatch

SHARED_BYTES, MULTIPROCESSORS = 232448, 132


class FakeDriver:
    """An H200 to Triton; what it loads are names, and what it runs is counted."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.name = "an H200"
        self.loaded: list[str] = []
        self.launched: list[str] = []
        self.utils = SimpleNamespace(
            load_binary=self.load, get_device_properties=lambda device: {"max_shared_mem": SHARED_BYTES}
        )

    def load(self, name: str, *_: Any) -> tuple[int, int, int, int, int]:
        self.loaded.append(name)
        return 1, 1, 32, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *_: self.launched.append(metadata.name)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


@contextmanager
def fake_gpu(cache: Path) -> Iterator[FakeDriver]:
    """Inside, ops take their kernels for tensors of the CPU; binaries are kept in `cache`."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    fake = FakeDriver(GPUTarget("cuda", 90, 32))
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    forget_kernels()
    with pytest.MonkeyPatch.context() as patch, knobs.cache.scope():
        knobs.cache.dir = str(cache)
        patch.setattr(dispatch, "why_not_triton", lambda *_: None)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "device", lambda _: nullcontext())
        patch.setattr(torch.cuda, "get_device_name", lambda *_: fake.name)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        patch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
        architecture.architecture.cache_clear()
        patch.setattr(driver, "_active", fake)
        try:
            yield fake
        finally:
            architecture.architecture.cache_clear()
            forget_kernels()


def forget_kernels() -> None:
    """As in a new process: none of the modules that were imported has a kernel loaded."""
    from triton import JITFunction

    for name, module in list(sys.modules.items()):
        if name.startswith("sigma_kernels"):
            for value in vars(module).values():
                if isinstance(value, JITFunction):
                    value.device_caches.clear()
