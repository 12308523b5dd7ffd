"""Failures that no `try` of ours sees: exceptions that leave a thread, or the program after its last handler.

Faults below Python (a driver, a kernel) are written by `faulthandler`, which the program starts with its log file.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from sigma.train.crash import CrashKind


@contextmanager
def crash_hooks(report: Callable[[BaseException, CrashKind, str | None], None]) -> Iterator[None]:
    """Inside, an exception that leaves the main thread or any other thread is given to `report`.

    `report(error, kind, thread_name)` writes and announces; the hooks that were there before run afterwards.
    """
    before, before_thread = sys.excepthook, threading.excepthook

    def main_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):  # not Ctrl+C
            report(error, "startup", None)
        before(kind, error, trace)

    def thread_hook(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, Exception):
            report(args.exc_value, "data_thread", args.thread.name if args.thread else None)
        before_thread(args)

    sys.excepthook, threading.excepthook = main_hook, thread_hook
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook = before, before_thread
