"""The window that a double-click opens: it waits for a reader at the end, and closing it saves the run.

Windows ends a process as soon as its handler of the close event returns, and after five seconds in any case. Python's
own handler returns at once, so ours waits until the run is saved.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sigma.core import paths
from sigma.core.stop import StopRequest

HOLD_VARIABLE = "SIGMA_HOLD_WINDOW"
"""Set by the desktop file, whose terminal closes with the program."""
_CLOSE_EVENTS = {2: "CTRL_CLOSE_EVENT", 5: "CTRL_LOGOFF_EVENT", 6: "CTRL_SHUTDOWN_EVENT"}
_STD_INPUT_HANDLE, _QUICK_EDIT, _EXTENDED_FLAGS = -10, 0x40, 0x80


def claim() -> bool:
    """Whether the window is this program's alone. Children do not inherit the answer."""
    asked = os.environ.pop(HOLD_VARIABLE, "") != ""
    if sys.platform != "win32" or not paths.is_frozen():
        return asked
    if _kernel32().GetConsoleProcessList((ctypes.c_uint * 2)(), 2) != 1:
        return asked
    _keep_running_when_clicked()
    return True


def hold() -> None:
    """Keep the window open until Enter is pressed."""
    if sys.stdin is not None and sys.stdin.isatty():
        with suppress(EOFError, KeyboardInterrupt, OSError):  # OSError: the terminal has gone
            input("Press Enter to close this window.")


@contextmanager
def close_saves(stop: StopRequest) -> Iterator[None]:
    """Inside, closing the window, logging off and shutting down ask `stop`, and Windows waits for the end of the block.

    Elsewhere the terminal sends SIGHUP, which `stop` handles. Windows kills after about five seconds: what is not saved
    by then is lost since the last checkpoint.
    """
    if sys.platform != "win32":
        yield
        return
    saved = threading.Event()

    def handle(event: int) -> int:  # Windows calls it in a thread of its own
        if event not in _CLOSE_EVENTS:
            return 0
        stop.request(_CLOSE_EVENTS[event])
        _thread.interrupt_main(getattr(signal, "SIGBREAK", signal.SIGTERM))  # a start-up that reads no flag ends too
        saved.wait()
        return 1

    routine = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)(handle)
    _kernel32().SetConsoleCtrlHandler(routine, 1)
    try:
        yield
    finally:
        saved.set()
        _kernel32().SetConsoleCtrlHandler(routine, 0)


def _keep_running_when_clicked() -> None:
    """Switch QuickEdit off: with it, a click into the window stops the next line that is printed, and the training."""
    kernel32, mode = _kernel32(), ctypes.c_uint()
    handle = kernel32.GetStdHandle(_STD_INPUT_HANDLE)
    if kernel32.GetConsoleMode(handle, ctypes.byref(mode)):
        kernel32.SetConsoleMode(handle, mode.value & ~_QUICK_EDIT | _EXTENDED_FLAGS)


def _kernel32() -> Any:
    return ctypes.windll.kernel32  # pyright: ignore[reportAttributeAccessIssue] - Windows only
