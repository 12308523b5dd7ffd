"""Compiling kernels side by side before the first step launches them.

Triton compiles a kernel where it is launched first, one after another, which takes a first step of a training 20 s. Its
compiler leaves the interpreter to other threads for most of that time. A rehearsal of the step therefore only notes
what it would launch, and threads compile that, or load it from Triton's cache, under the very keys that the step asks
for. Nobody lists kernels: what the step launches is what the rehearsal launches.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from sigma_kernels import dispatch, pipelining, tuned

MOST_THREADS = 8


def why_not_ahead(device: torch.device) -> str | None:
    """The reason why nothing is compiled for `device`, or None."""
    return dispatch.why_reference(torch.empty(0, device=device))


def cache_folder() -> Path:
    """Where Triton keeps what it has compiled."""
    from triton import knobs

    return Path(knobs.cache.dir)


def facts_of_kernels() -> dict[str, Any]:
    """What decides, besides what an op is called with, which binaries it asks for on the current CUDA device; JSON."""
    import triton
    from triton.runtime import driver

    return {
        "kernels": tuned.fingerprint(),
        "launches": tuned.in_force(),
        "pipelined": pipelining.is_on(),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "target": str(driver.active.get_current_target()),
    }


@contextmanager
def _one_parser() -> Iterator[None]:
    """One thread at a time parses: in Python 3.11 two may spoil each other's tree (SystemError, python/cpython#106905).

    It costs no time, because parsing holds the interpreter anyway.
    """
    from triton.runtime.jit import JITCallable

    lock, parse = threading.Lock(), JITCallable.parse

    def parse_alone(self: JITCallable) -> Any:
        with lock:
            return parse(self)

    JITCallable.parse = parse_alone
    try:
        yield
    finally:
        JITCallable.parse = parse


def _leave_signals_to_others() -> None:
    """Ctrl+C in a terminal reaches ptxas too, and for one that is killed Triton prints the whole kernel.

    A process inherits what the thread that starts it blocks. Windows has nothing of the kind.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


class KernelsAhead:
    """Kernels that are being compiled and loaded for the current CUDA device.

    A context manager: left early, it gives up what no thread has begun, else the interpreter would end only after all.
    """

    def __init__(self) -> None:
        self._device = torch.cuda.current_device()
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, "sigma-kernels", _leave_signals_to_others)
        self._kernels: list[Future[None]] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(_one_parser())
        self._open.callback(self._pool.shutdown, cancel_futures=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, a launch of a kernel that this process has not loaded is left out; at the end these are compiled.

        What such a launch would write stays uninitialised: nothing inside may depend on it or keep it. Kernels that are
        there already run, so all that they index by must be made without kernels. Other threads must launch nothing.
        """
        from triton import knobs

        noted: dict[tuple[str, str, str], tuple[Any, str]] = {}

        def note(*, key: str, fn: Any, compile: Any, is_manual_warmup: bool, **_: Any) -> bool:
            if not is_manual_warmup:  # that is a thread of ours at work
                noted[fn.module, fn.name, key] = fn.jit_function, compile["specialization_data"]
            return not is_manual_warmup

        before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
        try:
            yield
        finally:
            knobs.runtime.jit_cache_hook = before
        # only now: a kernel that appeared in between would run on what another one has not written
        self._kernels += [self._pool.submit(self._load, *kernel) for kernel in noted.values()]

    def _load(self, kernel: Any, specialization: str) -> None:
        with torch.cuda.device(self._device):
            _ = kernel.preload(specialization).run  # the launcher is made and the binary loaded when it is asked for

    def wait(self) -> int:
        """Until all of them are loaded; returns how many. Raises the first error, which would be the step's."""
        for kernel in as_completed(self._kernels):
            kernel.result()
        return len(self._kernels)
