"""A collection as an endless source with an exact position: window after window, epoch after epoch.

The cursor says where the window begins, how far it is used up, and which of its blocks were left out. `seek` reads
the window again and checks that it is the same.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from sigma.data.background import BackgroundReader, Pause
from sigma.data.record import Collection, Cursor, Damaged, Record, Unavailable
from sigma.data.window import Hole, Place, Window, WindowSize, read_window

KEPT_PLACES = 100
MOST_MISSES = 12  # attempts at a missing file; with the pauses of `Pause` about half an hour


@dataclass(frozen=True)
class Position:
    """A place, and what has to be the same when its window is read again (`records` is None before the first time)."""

    place: Place
    pin: str | None = None
    records: int | None = None
    holes: frozenset[Hole] = frozenset()


class WindowSource:
    """A RemoteSource over a collection. `on_damage` is told of each damaged block when its window is first used."""

    def __init__(
        self,
        collection: Collection,
        seed: int,
        *,
        size: WindowSize = WindowSize(),  # noqa: B008 - frozen
        pause: Pause = Pause(),  # noqa: B008
        on_damage: Callable[[Damaged], None] | None = None,
    ) -> None:
        self._collection, self._seed, self._size, self._pause = collection, seed, size, pause
        self.on_damage = on_damage
        self.known_damage: dict[tuple[str, int], Damaged] = {}  # what an earlier process left out stays out
        self.places: deque[str] = deque(maxlen=KEPT_PLACES)  # where records were left out, the newest
        self.skipped: Counter[str] = Counter()
        self._at = Position(Place())
        self._misses: Counter[str] = Counter()  # attempts at files that are missing
        self._index = 0  # records of the window that are used up
        self._window: Window | None = None
        self._reads = threading.Lock()  # the thread of an earlier reader may hang for a while after `close`
        self._reader: BackgroundReader[Position, Window] | None = None

    @property
    def name(self) -> str:
        return self._collection.name

    @property
    def fingerprint(self) -> str:
        """What the order of records depends on besides the pin and the seed."""
        return f"{self._collection.fingerprint} {astuple(self._size)}"

    @property
    def failure(self) -> str | None:
        failure = None if self._reader is None else self._reader.failure
        return None if failure is None else failure.reason

    def ready(self, timeout_s: float = 0.0) -> bool:
        return self._window is not None or self._reading().ready(self._at, timeout_s)

    def __next__(self) -> Record:
        if self._window is None:
            self._adopt(self._reading().take(self._at))
        assert self._window is not None
        record = self._window.records[self._index]
        self._index += 1
        if self._index == len(self._window.records):
            self._at, self._index = Position(self._window.after, self._at.pin), 0
            self._window = None
        return record

    def cursor(self) -> Cursor:
        place = self._at.place
        return {
            "epoch": place.epoch,
            "file": place.file,
            "position": place.position,
            "index": self._index,
            "records": self._at.records,
            "pin": self._at.pin,
            "holes": sorted(([*hole] for hole in self._at.holes), key=lambda hole: (hole[0], hole[1])),
            "skipped": dict(sorted(self.skipped.items())),
        }

    def seek(self, cursor: Cursor) -> None:
        holes = frozenset((path, position, resume) for path, position, resume in cursor["holes"])
        place = Place(cursor["epoch"], cursor["file"], cursor["position"])
        self._at, self._index = Position(place, cursor["pin"], cursor["records"], holes), cursor["index"]
        self.skipped = Counter(cursor["skipped"])
        self._window = None

    def close(self) -> None:
        if self._reader is not None:
            self._collection.close()
            self._reader.close()
            self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_window": None, "_reader": None, "_reads": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reads = threading.Lock()

    def _reading(self) -> BackgroundReader[Position, Window]:
        if self._reader is None:
            self._reader = BackgroundReader(self.name, self._read, self._pause, self._seed)
        return self._reader

    def _adopt(self, window: Window) -> None:
        """Use a window, and have the next one read. What it left out counts once, not when it is read again."""
        first_time = self._at.records is None
        if first_time:
            self.skipped += window.skipped
            self.places.extend(window.places)
            holes = self._at.holes | {(damage.file, damage.position, damage.resume) for damage in window.damaged}
            self._at = Position(self._at.place, window.pin, len(window.records), frozenset(holes))
        self._window = window
        self._reading().want(Position(window.after, self._at.pin))
        if first_time and self.on_damage is not None:
            for damage in window.damaged:
                self.on_damage(damage)

    # -------------------------------------------------------------- runs in the reader's thread
    def _read(self, at: Position, goes_on: Callable[[], bool]) -> Window:
        with self._reads:
            if at.pin is not None and at.pin != self._collection.pin:
                self._collection.pin_to(at.pin)
            window = read_window(
                self._collection, self._seed, at.place, self._size, at.holes, goes_on, self._is_lost, self.known_damage
            )
        self._misses.clear()
        if at.records not in (None, len(window.records)):
            reason = f"a window of {at.records} records now has {len(window.records)}; the files have changed"
            raise Unavailable(self.name, reason)
        return window

    def _is_lost(self, path: str) -> bool:
        self._misses[path] += 1
        return self._misses[path] >= MOST_MISSES
