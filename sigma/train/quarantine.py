"""What happens to folders that must not stay: damaged ones are kept apart with their reason, torn saves are removed."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sigma.core import strict_json
from sigma.core.files import replace, write_atomic
from sigma.train.verify_checkpoint import COMMIT, step_of

QUARANTINE_DIR = "quarantine"
REASON = "reason.json"
TRASH_PREFIX = ".trash-"
_OUR_TEMPORARY = re.compile(r".+\.\d+-\d+\.tmp")


EventKind = Literal[
    "quarantined",
    "quarantine_failed",
    "torn_removed",
    "deleted",
    "delete_failed",
    "over_budget",
    "set_aside",
    "hint_failed",
]


@dataclass(frozen=True)
class CheckpointEvent:
    """Something that happened to a checkpoint, for the metrics and the console."""

    kind: EventKind
    checkpoint: str
    detail: str


def quarantine(folder: Path, run_dir: Path, reason: str) -> CheckpointEvent:
    """Move a damaged checkpoint to `quarantine/<name>/` with `reason.json`; never deletes, never raises OSError."""
    target = _free_name(run_dir / QUARANTINE_DIR / folder.name)
    note = {"checkpoint": folder.name, "reason": reason, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    try:
        target.parent.mkdir(exist_ok=True)
        replace(folder, target)
    except OSError as error:
        return CheckpointEvent("quarantine_failed", folder.name, f"{reason}; {error}")
    try:
        write_atomic(target / REASON, strict_json.dumps(note, indent=1).encode())
    except OSError as error:
        reason = f"{reason}; {REASON} was not written: {error}"
    return CheckpointEvent("quarantined", folder.name, reason)


def set_aside(checkpoints: Path) -> Path | None:
    """Move all checkpoints of an earlier run out of the way of one that starts anew; where they went, or None.

    Raises OSError, FileBusyError.
    """
    if not checkpoints.is_dir() or not any(step_of(path) is not None for path in checkpoints.iterdir()):
        return None
    target = _free_name(checkpoints.with_name(f"{checkpoints.name}-replaced"))
    replace(checkpoints, target)
    return target


def _free_name(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def clean_orphans(run_dir: Path, checkpoints: Path) -> list[CheckpointEvent]:
    """Remove what a killed process left: saves without COMMIT, half-deleted checkpoints, our temporary files.

    Call it once at start, while holding the run's lock. One event per torn save; failures are events, not errors.
    """
    events: list[CheckpointEvent] = []
    for path in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else []:
        torn = step_of(path) is not None and not (path / COMMIT).exists()
        if torn or path.name.startswith(TRASH_PREFIX):
            event = delete_folder(path)
            if torn and event.kind == "deleted":
                event = CheckpointEvent("torn_removed", path.name, "its save was cut off before COMMIT")
            events.append(event)
    for path in (*run_dir.glob("*.tmp"), *checkpoints.glob("*.tmp")):
        if _OUR_TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
    return events


def delete_folder(folder: Path) -> CheckpointEvent:
    """Delete a checkpoint: out of sight by a rename first, so that a kill in between leaves nothing half valid."""
    name = folder.name.removeprefix(TRASH_PREFIX)
    try:
        if folder.name.startswith(TRASH_PREFIX):
            trash = folder
        else:
            trash = _free_name(folder.with_name(TRASH_PREFIX + folder.name))
            replace(folder, trash)
        shutil.rmtree(trash)
    except OSError as error:
        return CheckpointEvent("delete_failed", name, str(error))
    return CheckpointEvent("deleted", name, "")
