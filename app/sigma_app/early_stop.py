"""A stop before the first step: there is nothing to save yet, so the program leaves at once and says so."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sigma.core.stop import StopRequest

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class EarlyStop(BaseException):
    """A signal that came before the trainer had taken over the signals; not an Exception, so that nothing eats it."""

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name)
        self.signal_name = signal_name


@contextmanager
def leave_on_signal(stop: StopRequest) -> Iterator[None]:
    """Inside, a signal raises EarlyStop in the main thread; while the trainer runs, its own handlers are in place.

    The wish is noted in `stop` too: where a library's callback swallows the exception, the trainer ends before its
    first step. Enter it in the main thread (Python raises ValueError elsewhere).
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.request(signal.Signals(number).name)
        raise EarlyStop(stop.signal_name or "")

    previous: dict[int, Any] = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            if handler is not None:  # None: set by C code, which Python cannot put back
                signal.signal(number, handler)
