"""A bounded background thread that keeps a few results ready; order and values are those without the thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from sigma.data.record import DataError

T = TypeVar("T")
POLL_S = 0.05


class DataThreadError(DataError):
    """The data thread failed; `__cause__` is the error that it met, with its traceback."""


class Prefetcher(Generic[T]):
    """At most `depth` results wait, and one more is being made. `close` ends and joins the thread."""

    def __init__(self, produce: Callable[[], T], depth: int) -> None:
        self._produce = produce
        self._ready: queue.Queue[T | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sigma-data", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                result: T | BaseException = self._produce()
            except BaseException as error:  # noqa: BLE001 - handed to the consumer by `get`, whatever it is
                result = error
            while not self._stop.is_set():
                try:
                    self._ready.put(result, timeout=POLL_S)
                    break
                except queue.Full:
                    continue
            if isinstance(result, BaseException):
                return

    def get(self, while_waiting: Callable[[], None] | None = None) -> T:
        """The next result. Raises DataThreadError when the thread failed or was closed, again at every later call.

        `while_waiting` is called again and again until there is one, and may raise.
        """
        while True:
            alive = self._thread.is_alive()  # asked before the queue: what a thread leaves behind is still delivered
            try:
                result = self._ready.get(timeout=POLL_S)
                break
            except queue.Empty:
                if not alive:
                    raise DataThreadError("the data thread has ended; nothing more comes from it.") from None
                if while_waiting is not None:
                    while_waiting()
        if isinstance(result, BaseException):
            self._ready.put(result)
            raise DataThreadError(f"the data thread failed: {type(result).__name__}: {result}") from result
        return result

    def close(self) -> None:
        """Stop and join; results that wait are dropped. May be called twice."""
        self._stop.set()
        self._thread.join()
