"""The CUDA context, made in a thread while torch is imported: the driver needs neither torch nor the interpreter.

torch uses the primary context of a device, which exists once in a process, whoever asks for it first. The driver reads
the environment meanwhile and setting a variable may move it (glibc before 2.41), so nothing of ours sets one between
`EarlyContext` and `finish`. CUDA_MODULE_LOADING needs no word: every driver that is used here loads modules lazily.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import threading
from collections.abc import Callable

from sigma_app.nvidia import Nvidia

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class EarlyContext:
    """The primary context of the first visible device; none without a GPU, and none behind a driver that is too old.

    `found` is None where no GPU is wanted. The environment of the driver must be complete.
    """

    def __init__(self, found: Nvidia | None) -> None:
        self._release: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        if found is not None and found.gpus and found.branch is not None and not found.is_old:
            importlib.import_module("numpy")  # torch imports it anyway, and it sets a variable
            # no daemon: the driver must not be at work while the process ends
            self._thread = threading.Thread(target=self._retain, name="sigma-cuda-context")
            self._thread.start()

    def finish(self, *, keep: bool) -> None:
        """Wait for the thread; give the context back unless it is to be kept, which is until the process ends."""
        if self._thread is not None:
            self._thread.join()
        if not keep and self._release is not None:
            self._release()
            self._release = None

    def _retain(self) -> None:
        # What fails here fails again when torch asks for the same, and then it is said; nothing is retained until then.
        try:
            cuda = ctypes.CDLL(_LIBRARY)
            device, context = ctypes.c_int(), ctypes.c_void_p()
            failed = (
                cuda.cuInit(0)
                or cuda.cuDeviceGet(ctypes.byref(device), 0)
                or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
            )
            if not failed:
                self._release = lambda: cuda.cuDevicePrimaryCtxRelease_v2(device)
        except (OSError, AttributeError):  # no such library, or one that lacks a function
            return
