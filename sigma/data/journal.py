"""The journal of the data: what was decided by the clock or by the network, so that it can be decided the same again.

The order of documents is a function of the seed and of the remote files, but for one thing: which source did not
answer in time. `data_journal.jsonl` in the run folder holds exactly that, one strict JSON object a line, append only:

    start       a run from its beginning; nothing before it counts
    resume      a process goes on at document `at`
    down, up    from document `at` on `source` counts as absent, or as back
    damaged     before document `at`, `source` left out a block of `file` at `position`
    batch       batch number `batch` is complete: everything before document `at` is decided; `sha` is over its tokens
    divergence  at document `at` the same could not be done again; what was known from there on no longer counts

Documents are numbered from 0 over the whole run. A line is written before the batch that it affects is handed out,
so what a kill cuts off has affected nothing, and neither has a torn last line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sigma.core.files import append_line, complete_torn_line
from sigma.core.strict_json import StrictJsonError, dumps, loads
from sigma.data.record import Damaged

FILE_NAME = "data_journal.jsonl"
POLL_S = 0.02


class Known:
    """What the lines of a journal say."""

    def __init__(self) -> None:
        self.identity: str | None = None
        self.frontier = 0  # documents before it are decided
        self.ups: dict[tuple[int, str], bool] = {}  # (document, source) -> back, or absent
        self.damage: dict[tuple[int, str], dict[tuple[str, int], Damaged]] = {}  # (document, source) -> blocks
        self.shas: dict[tuple[int, int, int], str] = {}  # (batch, rows, length) -> sha

    def add(self, row: dict[str, Any]) -> None:
        """Take in one line."""
        kind, at = row["kind"], row["at"]
        if kind == "start":
            self.__init__()
            self.identity = row["identity"]
        elif kind in ("down", "up"):
            self.ups[at, row["source"]] = kind == "up"
        elif kind == "damaged":
            damage = Damaged(row["file"], row["position"], row["reason"], row["resume"])
            self.damage.setdefault((at, row["source"]), {})[damage.file, damage.position] = damage
        elif kind == "batch":
            self.frontier = max(self.frontier, at)
            self.shas[row["batch"], row["rows"], row["length"]] = row["sha"]
        elif kind == "divergence":
            self.forget_from(at)
            self.shas = {key: sha for key, sha in self.shas.items() if key[0] < row["batch"]}
        elif kind == "resume":
            self.forget_from(self.frontier)  # a batch that was begun and never completed

    def forget_from(self, at: int) -> None:
        """Nothing from document `at` on is known."""
        self.frontier = min(self.frontier, at)
        self.ups = {key: value for key, value in self.ups.items() if key[0] < at}
        self.damage = {key: value for key, value in self.damage.items() if key[0] < at}


class Journal:
    """Reads what was decided before and writes what is decided now. `path` None keeps nothing.

    `follow` is for the other ranks: they write nothing and decide nothing, but wait for the lines of rank 0, which
    opens the journal before them. `fresh` starts a new run whatever the file holds.
    """

    def __init__(self, path: Path | None, identity: str, *, follow: bool = False, fresh: bool = False) -> None:
        self.path, self.follow = path, follow
        self._identity, self._fresh = identity, fresh
        self._opened = False
        self._known = Known()
        self._from = self._read_to = 0  # bytes: where reading began, and how far it is

    def open(self, offset: int, at: int) -> None:
        """Read what stands behind byte `offset` (a `position` of earlier) and go on at document `at`."""
        self._known, self._from, self._read_to = Known(), offset, offset
        if self.path is None:
            return
        if self.follow:
            self._from = self._read_to = self._last_opening()
            return
        complete_torn_line(self.path)
        self._read()
        self._known.forget_from(self._known.frontier)
        if at == 0 and (self._fresh or self._known.identity != self._identity):
            self._write("start", at, identity=self._identity)
            self._known = Known()
        else:
            self._write("resume", at)
        self._fresh, self._opened = False, True

    def position(self, at: int) -> int:
        """The byte that `open` needs to go on at document `at`: all lines that matter from there on stand behind it."""
        if self.path is None or self.follow or not self._opened:
            return 0
        return self._from if at < self._known.frontier else self.path.stat().st_size

    # ------------------------------------------------------------------ what was decided
    def knows(self, at: int, pause: Callable[[], None]) -> bool:
        """Whether document `at` was decided before. A follower waits until it is; `pause` may raise to end that."""
        while self.follow and self.path is not None and at >= self._known.frontier:
            self._read()
            if at >= self._known.frontier:
                pause()
                time.sleep(POLL_S)
        return at < self._known.frontier

    def up(self, at: int, source: str, before: bool) -> bool:
        """Whether `source` counted as present at the known document `at`, which came after `before`."""
        return self._known.ups.get((at, source), before)

    def agrees_on_damage(self, at: int, source: str, damage: tuple[Damaged, ...]) -> bool:
        """Whether the same blocks were left out before the known document `at`."""
        return self._known.damage.get((at, source), {}).keys() == {(one.file, one.position) for one in damage}

    def known_damage(self, source: str) -> dict[tuple[str, int], Damaged]:
        """The blocks of `source` that were left out behind the position that was opened."""
        return {
            place: one
            for (_, name), found in self._known.damage.items()
            if name == source
            for place, one in found.items()
        }

    def agrees_on_batch(self, batch: int, rows: int, length: int, sha: str) -> bool:
        """Whether this batch had the same tokens, as far as the journal knows one of that number and shape."""
        return self._known.shas.get((batch, rows, length), sha) == sha

    # ------------------------------------------------------------------ what is decided now
    def change(self, at: int, source: str, up: bool, reason: str | None) -> None:
        """From document `at` on `source` is back, or absent for `reason`."""
        self._write("up", at, source=source) if up else self._write("down", at, source=source, reason=reason)

    def damaged(self, at: int, source: str, damage: Damaged) -> None:
        """A block of `source` was left out before document `at`."""
        place = {"file": damage.file, "position": damage.position, "resume": damage.resume}
        self._write("damaged", at, source=source, **place, reason=damage.reason)

    def batch(self, at: int, batch: int, rows: int, length: int, sha: str) -> None:
        """Batch number `batch` is complete; the next document is `at`."""
        self._write("batch", at, batch=batch, rows=rows, length=length, sha=sha)

    def diverge(self, at: int, batch: int, source: str | None, reason: str) -> None:
        """What was known from document `at` and from batch number `batch` on cannot be done again."""
        row = {"source": source, "batch": batch, "reason": reason}
        self._write("divergence", at, **row)
        self._known.add({"kind": "divergence", "at": at, **row})

    # ------------------------------------------------------------------ the file
    def _write(self, kind: str, at: int, **details: Any) -> None:
        if self.path is not None and not self.follow:
            append_line(self.path, dumps({"kind": kind, "at": at, **details}))

    def _read(self) -> None:
        """Take in the whole lines that were not read yet."""
        for row, end in _rows(self.path, self._read_to):
            self._read_to = end
            if row is not None:
                self._known.add(row)

    def _last_opening(self) -> int:
        """Where rank 0 began to write in its present process."""
        opening = start = 0
        for row, end in _rows(self.path, 0):
            if row is not None and row["kind"] in ("start", "resume"):
                opening = start
            start = end
        return opening


def _rows(path: Path | None, offset: int) -> list[tuple[dict[str, Any] | None, int]]:
    """(line, the byte behind it) of every whole line from `offset` on; None for one that a kill cut off."""
    if path is None or not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    rows: list[tuple[dict[str, Any] | None, int]] = []
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        offset += len(line)
        try:
            row = loads(line)
        except StrictJsonError:
            row = None
        rows.append((row if isinstance(row, dict) and {"kind", "at"} <= row.keys() else None, offset))
    return rows
