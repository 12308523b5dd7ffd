"""One thread that reads what will be wanted next. A reader that hangs never blocks the one who asks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sigma.data.record import Unavailable

K = TypeVar("K")
T = TypeVar("T")
CLOSE_S = 2.0  # a name lookup cannot be broken off: such a thread is left to end by itself


@dataclass(frozen=True)
class Pause:
    """Seconds between attempts at a source that fails: they double, with jitter, up to a limit."""

    first_s: float = 2.0
    most_s: float = 300.0

    def seconds(self, failures: int, draws: random.Random) -> float:
        """The pause after so many failures in a row: between half of the doubled value and all of it."""
        whole = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return whole * (0.5 + draws.random() / 2)


class BackgroundReader(Generic[K, T]):
    """Reads the wanted key and keeps the result until it is taken; at most one result waits.

    After Unavailable it tries again by itself, later and later. Any other error is kept for the one who asks.
    """

    def __init__(self, name: str, read: Callable[[K, Callable[[], bool]], T], pause: Pause, seed: int) -> None:
        self._name, self._read, self._pause = name, read, pause
        self._draws = random.Random(f"{name} {seed}")
        self._changed = threading.Condition()
        self._attempts_failed = 0
        self._wanted: K | None = None
        self._done: tuple[K, T | BaseException] | None = None
        self._failure: Unavailable | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"sigma-{name}", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> Unavailable | None:
        """Why the last attempt failed; None after a success."""
        with self._changed:
            return self._failure

    def want(self, key: K) -> None:
        """Read `key` in place of whatever was wanted before."""
        with self._changed:
            if self._wanted != key:
                self._wanted = key
                self._changed.notify_all()

    def ready(self, key: K, timeout_s: float) -> bool:
        """Whether `take(key)` has a result, after waiting at most `timeout_s`."""
        self.want(key)
        with self._changed:
            return self._changed.wait_for(lambda: self._is_done(key), timeout_s)

    def take(self, key: K) -> T:
        """The result for `key`; waits for an attempt that is under way. Raises what the attempt raised."""
        self.want(key)
        with self._changed:
            before = self._attempts_failed if not self._is_pausing() else -1
            self._changed.wait_for(lambda: self._is_done(key) or self._closed or self._attempts_failed != before)
            if not self._is_done(key):
                raise self._failure or Unavailable(self._name, "closed")
            assert self._done is not None
            result = self._done[1]
            if isinstance(result, BaseException):
                raise result
            self._done = self._wanted = None
            return result

    def close(self) -> bool:
        """Stop; whether the thread ended within CLOSE_S. A read under way must be broken off by its owner first."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        return not self._thread.is_alive()

    def _is_done(self, key: K) -> bool:
        return self._done is not None and self._done[0] == key

    def _is_pausing(self) -> bool:
        return self._failure is not None and time.monotonic() < self._retry_at

    def _next_key(self) -> K | None:
        """Wait for something to read; None when closed."""
        with self._changed:
            while not self._closed:
                pause = self._retry_at - time.monotonic()
                if self._wanted is None or self._is_done(self._wanted):
                    self._changed.wait()
                elif pause > 0:
                    self._changed.wait(pause)
                else:
                    return self._wanted
            return None

    def _run(self) -> None:
        while (key := self._next_key()) is not None:
            try:
                result: T | BaseException = self._read(key, lambda: not self._closed)
            except BaseException as error:  # noqa: BLE001 - raised by `take`, whatever it is
                result = error
            with self._changed:
                self._settle(key, result)
                self._changed.notify_all()

    def _settle(self, key: K, result: T | BaseException) -> None:
        """Note how an attempt ended."""
        if isinstance(result, Unavailable):
            self._failure, self._failures = result, self._failures + 1
            self._attempts_failed += 1
            pause = max(self._pause.seconds(self._failures, self._draws), result.retry_after_s)
            self._retry_at = time.monotonic() + pause
            return
        self._failure, self._failures, self._retry_at = None, 0, 0.0
        self._done = (key, result)
