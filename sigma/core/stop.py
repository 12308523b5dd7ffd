"""A polite stop: signals only set a flag; the loop finishes its step, saves and leaves.

The second Ctrl+C is an order: it raises KeyboardInterrupt at once, or at the end of the write in progress (`hold`).
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_TERMINATED = 143  # 128 + SIGTERM


class StopRequest:
    """Whether someone asked the run to end, and by which signal.

    As a context manager it installs handlers for SIGINT, SIGTERM, SIGHUP (and SIGBREAK on Windows, which is also what
    closing the console sends), ignores SIGPIPE, and restores what was there. Enter it in the main thread (Python
    raises ValueError elsewhere). `request` asks for the same from code.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}
        self._holds = 0
        self._exit_now = False

    @property
    def requested(self) -> bool:
        """True from the first signal or `request` on."""
        return self.signal_name is not None

    @property
    def exit_code(self) -> int:
        """What the program ends with after the stop: 130 for Ctrl+C, 143 for every other signal, 0 without a stop."""
        if self.signal_name is None:
            return 0
        return EXIT_INTERRUPTED if self.signal_name == "SIGINT" else EXIT_TERMINATED

    def request(self, signal_name: str = "SIGTERM") -> None:
        """Ask for a stop; the first reason is kept."""
        if self.signal_name is None:
            self.signal_name = signal_name

    @contextmanager
    def hold(self) -> Generator[None]:
        """Inside, the second Ctrl+C waits until the end of the block (a checkpoint being written)."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._exit_now and self._holds == 0:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            if hasattr(signal, name):
                self._install(getattr(signal, name), self._handle)
        if hasattr(signal, "SIGPIPE"):
            self._install(signal.SIGPIPE, signal.SIG_IGN)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            if handler is not None:  # None: set by C code, which Python cannot put back
                signal.signal(number, handler)
        self._previous.clear()

    def _install(self, number: signal.Signals, handler: Any) -> None:
        self._previous[number] = signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and self.signal_name == "SIGINT":
            self._exit_now = True
            if self._holds == 0:
                raise KeyboardInterrupt
        self.request(name)
