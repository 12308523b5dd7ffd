"""Which sources count as absent, from which document on: decided by waiting, or as the journal says.

A source that does not answer within the deadline is absent from that document on; others give in its place, and it is
back at the first document for which it is ready again. It then takes its usual share: what it missed is not caught up,
because hours of one source alone would be another mixture than the one that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sigma.data.feed import Feed
from sigma.data.journal import Journal

SLICE_S = 0.05
PATIENCE = 20  # deadlines: a source that ran into one may make nobody wait again for so long
TELL_AFTER_S = 2.0

Tell = Callable[..., None]  # event, details


@dataclass(frozen=True)
class Limits:
    """Seconds: of waiting for sources in one batch; of waiting for a source that has to answer again on resume."""

    deadline_s: float = 2.5
    resume_s: float = 120.0


class Outages:
    """State of the remote sources. `pause` is called while waiting and may raise to end it."""

    def __init__(self, journal: Journal, limits: Limits, tell: Tell, pause: Callable[[], None]) -> None:
        self._journal, self._limits, self._tell, self._pause = journal, limits, tell, pause
        self.absent: set[str] = set()
        self.outages = self.divergences = 0
        self._batch = 0
        self._left_s = limits.deadline_s
        self._stalled: dict[tuple[str, str], float] = {}
        self._told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"absent": sorted(self.absent), "outages": self.outages, "divergences": self.divergences}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.absent = set(state["absent"])
        self.outages, self.divergences = state["outages"], state["divergences"]

    def begin_batch(self, number: int) -> None:
        """Another batch: there is a whole deadline for waiting again."""
        self._batch = number
        self._left_s = self._limits.deadline_s

    def notice(self, feed: Feed) -> None:
        """Say it when a source fails before it is needed."""
        if feed.failure is not None:
            self._tell_once("source_absent", feed.name, reason=feed.failure)

    def gives(self, feed: Feed, at: int) -> bool:
        """Whether document `at` may come from `feed`, which is then ready."""
        if self._journal.knows(at, self._pause):
            before = feed.name not in self.absent
            up = self._journal.up(at, feed.name, before)
            if not up:
                self._change(feed, at, False, "as before")
                return False
            if self._wait(feed, self._limits.resume_s, replay=True):
                self._change(feed, at, True, None)
                return True
            self.diverge(at, feed.name, self._reason(feed, self._limits.resume_s))
        return self._decide(feed, at)

    def diverge(self, at: int, source: str | None, reason: str) -> None:
        """Say, count and write down that from document `at` on things go otherwise than before."""
        self.divergences += 1
        self._journal.diverge(at, self._batch, source, reason)
        self._tell("data_divergence", source=source, reason=reason)

    def _decide(self, feed: Feed, at: int) -> bool:
        ready = feed.ready() or (feed.busy and self._wait_for_workers(feed))
        if not ready and feed.name not in self.absent:
            ready = self._wait_for_network(feed)
        self._change(feed, at, ready, self._reason(feed, self._limits.deadline_s))
        return ready

    def _wait_for_workers(self, feed: Feed) -> bool:
        """What is in hand comes soon, unless the gate drops everything."""
        if not self._is_patient(feed, "workers"):
            return False
        began = time.monotonic()
        ready = self._wait(feed, self._limits.deadline_s, while_busy=True)
        if not ready and time.monotonic() - began >= self._limits.deadline_s:
            self._stalled[feed.name, "workers"] = time.monotonic()
        return ready

    def _wait_for_network(self, feed: Feed) -> bool:
        if not self._is_patient(feed, "network"):
            return False
        began = time.monotonic()
        ready = self._wait(feed, self._left_s)
        self._left_s = max(0.0, self._left_s - (time.monotonic() - began))
        if not ready and feed.failure is None:
            self._stalled[feed.name, "network"] = time.monotonic()
        return ready

    def _is_patient(self, feed: Feed, with_whom: str) -> bool:
        """Whether the last time that nobody came is long enough ago."""
        stalled = self._stalled.get((feed.name, with_whom))
        return stalled is None or time.monotonic() - stalled >= PATIENCE * self._limits.deadline_s

    def _wait(self, feed: Feed, limit_s: float, *, replay: bool = False, while_busy: bool = False) -> bool:
        """Wait until `feed` is ready. One that has failed is waited for in a replay only; `while_busy` waits for the
        work of this program, but not for the network.
        """
        began = time.monotonic()
        told = False
        while not feed.ready(min(SLICE_S, limit_s)):
            waited_s = time.monotonic() - began
            hopeless = not feed.busy if while_busy else feed.failure is not None and not replay
            if waited_s >= limit_s or hopeless:
                return False
            if replay and not told and waited_s > TELL_AFTER_S:
                told = True
                self._tell("source_awaited", source=feed.name, reason=feed.failure, at_most_s=limit_s)
            self._pause()
        return True

    def _change(self, feed: Feed, at: int, up: bool, reason: str | None) -> None:
        name = feed.name
        if up == (name not in self.absent):
            return
        self._journal.change(at, name, up, reason)
        if up:
            self.absent.remove(name)
            self._tell_once("source_back", name)
        else:
            self.absent.add(name)
            self.outages += 1
            self._tell_once("source_absent", name, reason=reason)

    def _tell_once(self, event: str, name: str, **details: Any) -> None:
        """One line for the first outage of a source in this process, and one for its end; metrics count the rest."""
        if f"{event} {name}" not in self._told:
            self._told.add(f"{event} {name}")
            self._tell(event, source=name, **details)

    def _reason(self, feed: Feed, limit_s: float) -> str:
        return feed.failure or f"no document within {limit_s:g} s"
