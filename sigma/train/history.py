"""Reads metrics.jsonl back: one row per kind and step, the newest segment winning."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HISTORY = ("event", "startup")


@dataclass(frozen=True)
class History:
    """Rows of one run. `torn` counts lines that a kill cut off and that could not be read."""

    rows: list[Row]
    torn: int

    def of_kind(self, kind: str) -> list[Row]:
        """Rows of one kind (`train`, `eval`, `sample`, `event`, `startup`), by step."""
        return [row for row in self.rows if row.get("kind") == kind]

    def series(self, kind: str, name: str) -> list[tuple[float, float]]:
        """(step, value) for each row of `kind` that has a number under `name`."""
        rows = [row for row in self.of_kind(kind) if _is_number(row.get("step")) and _is_number(row.get(name))]
        return [(float(row["step"]), float(row[name])) for row in rows]

    def last(self, kind: str) -> Row:
        """The newest row of `kind`, or an empty one."""
        rows = self.of_kind(kind)
        return rows[-1] if rows else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_history(path: Path) -> History:
    """Parse `path`. A start supersedes the measurements after the step that it continues from, all of them if it starts
    anew: that work was lost or set aside.

    Events and start-up rows are kept from every segment, because they are history and not measurements.
    """
    if not path.exists():
        return History([], 0)
    newest: dict[tuple[Any, ...], Row] = {}
    torn = 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            torn += bool(line.strip())
            continue
        if not isinstance(row, dict):
            torn += 1
            continue
        kind = row.get("kind")
        if kind == "startup":
            first = row.get("checkpoint_resume_step") or 0
            newest = {k: r for k, r in newest.items() if k[0] in HISTORY or (r.get("step") or 0) <= first}
        key = (kind, row.get("step"), number) if kind in HISTORY else (kind, row.get("step"))
        if key not in newest or row.get("seg", 0) >= newest[key].get("seg", 0):
            newest[key] = row
    rows = sorted(newest.values(), key=lambda row: (row.get("step") or 0, row.get("t") or 0))
    return History(rows, torn)
