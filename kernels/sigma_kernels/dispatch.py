"""The one place that decides whether an op runs its Triton kernel or its PyTorch reference.

No op catches or falls back by itself: `use_triton` answers, says why, and counts both answers.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from sigma_kernels import counters

Backend = Literal["auto", "reference", "triton"]

_backend: Backend = "auto"
_reasons: dict[str, str] = {}


class BackendError(RuntimeError):
    """Triton was demanded where it cannot run; the message names the op and the reason."""


def set_backend(backend: Backend) -> None:
    """`auto` takes Triton for CUDA tensors; `reference` never; `triton` raises where it cannot run."""
    global _backend
    _backend = backend


def backend() -> Backend:
    """The backend in force."""
    return _backend


@contextmanager
def using(backend: Backend) -> Iterator[None]:
    """`set_backend` while it is open; the one before comes back, whatever is raised."""
    before = _backend
    set_backend(backend)
    try:
        yield
    finally:
        set_backend(before)


@cache
def triton_installed() -> bool:
    """Whether the triton package can be imported (nothing is imported)."""
    return importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in the CPU interpreter (TRITON_INTERPRET=1), as the tests use it."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not_triton(*tensors: Tensor) -> str | None:
    """The reason why these tensors cannot go to a Triton kernel, or None when they can."""
    if not triton_installed():
        return "triton is not installed"
    if interpreting():
        return None
    if any(not t.is_cuda for t in tensors):
        return "a tensor is not on a CUDA device"
    capability = torch.cuda.get_device_capability(tensors[0].device)
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None


def why_reference(*tensors: Tensor, limit: str | None = None) -> str | None:
    """The reason why an op would run its reference on `tensors`, or None; counts nothing."""
    reason = "the reference was asked for" if _backend == "reference" else limit or why_not_triton(*tensors)
    if _backend == "auto" and reason is None and interpreting():
        reason = "the interpreter is for tests; ask for it with set_backend('triton')"
    return reason


def use_triton(op: str, *tensors: Tensor, limit: str | None = None) -> bool:
    """Whether `op` runs its Triton kernel on `tensors`; counts `<op>.use_triton` or `<op>.use_reference`.

    `limit` is the op's own reason why its kernel does not take these tensors, or None.
    """
    reason = why_reference(*tensors, limit=limit)
    if reason is not None and _backend == "triton":
        raise BackendError(f"{op}: the Triton kernel was asked for, but {reason}")
    counters.add(f"{op}.{'use_reference' if reason else 'use_triton'}")
    _reasons[op] = reason or "triton"
    return reason is None


def report() -> dict[str, str]:
    """For each op that ran: `triton`, or why its reference ran the last time."""
    return dict(sorted(_reasons.items()))
