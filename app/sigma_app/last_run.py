"""How the start before this one ended, told by what it left behind. A process that was killed cannot write its report:
the next start writes it, from the lock, the last row of metrics, the log and the stack of a native crash."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigma.core import strict_json
from sigma.train.crash import CrashContext, last_metric_rows, write_crash_report
from sigma.train.manifest import FILE_NAME as MANIFEST_NAME
from sigma_app.bootstrap import copy_to_known_folder
from sigma_app.logfile import FAULTS_SUFFIX, NAMES, log_dirs

_MOST_STACK = 8000
_QUIET_KINDS = ("signal", "killed")


class LastRunDiedError(Exception):
    """The process before this one ended without a word; only ever written into its report."""


@dataclass(frozen=True)
class Remains:
    """What a dead process left."""

    pid: int
    last_row: dict[str, Any] | None
    """The last row of training in metrics.jsonl."""
    log: Path | None
    stack: str
    """The Python stack of a native crash; empty after a kill, which leaves none."""

    @property
    def step(self) -> int | None:
        """The last step that was written down."""
        return self.last_row["step"] if self.last_row else None

    @property
    def cause(self) -> str:
        """The likeliest reason, in words."""
        if self.stack:
            return f"it crashed below Python ({self.stack.splitlines()[0].removeprefix('Fatal Python error: ')})"
        return "it was killed, the memory ran out, or the machine lost power"


def told_at_start(run_dir: Path, dead_pid: int | None, report_dirs: Sequence[Path], *, write: bool = True) -> list[str]:
    """Lines about the last start in `run_dir`; none when it ended as it should.

    `dead_pid` is the process that left its lock behind; its report is written here if `write` is true. `report_dirs`
    are the folders of failures that came before a run folder was known. Raises OSError when a report cannot be written
    anywhere.
    """
    if dead_pid is not None:
        remains = remains_of(run_dir, dead_pid)
        after = f" after step {remains.step}" if remains.step else ""
        first = f"the last start here did not end cleanly: process {dead_pid} stopped{after}; {remains.cause}"
        return [first, f"crash report: {write_report(run_dir, remains, report_dirs)}"] if write else [first]
    since = last_work(run_dir)  # 0 before the first start here: the faults of other runs are not its own
    faults = newer(f"{NAMES}{FAULTS_SUFFIX}", log_dirs(), since) if since else []
    stacks = [path for path in faults if path.stat().st_size]
    told = [f"since the last start a process of this program crashed below Python: {stacks[0]}"] if stacks else []
    failed = newest_failure(run_dir, report_dirs)
    if failed is None:
        return told
    path, report = failed
    step = f" after step {report['step']}" if report.get("step") else ""
    what = " ".join(str(report.get("exception") or "").split())[:120]
    first = f"the last start ended with an error{step}: {report.get('exception_type')}: {what}"
    return [*told, first, f"crash report: {path}"]


def remains_of(run_dir: Path, pid: int) -> Remains:
    """What process `pid` left: its last row, its newest log, and the stack in the fault file beside that."""
    logs = [path for folder in log_dirs() for path in sorted(folder.glob(f"{NAMES[:-1]}{pid}.log"))]
    faults = logs[-1].with_suffix(FAULTS_SUFFIX) if logs else None
    stack = faults.read_text(errors="replace")[:_MOST_STACK] if faults is not None and faults.exists() else ""
    rows = [row for row in last_metric_rows(run_dir / "metrics.jsonl") if isinstance(row, dict)]
    last = next((row for row in reversed(rows) if row.get("kind") == "train"), None)
    return Remains(pid, last, logs[-1] if logs else None, stack)


def write_report(run_dir: Path, remains: Remains, other_dirs: Sequence[Path]) -> Path:
    """The report of a death that nobody could report; its arguments are those in the first line of the log."""
    context = CrashContext(step=remains.step, last_metrics=remains.last_row, argv=_arguments(remains.log))
    words = [f"process {remains.pid} ended without a word: {remains.cause}"]
    words += [f"log: {remains.log}"] if remains.log else []
    error = LastRunDiedError("\n".join([*words, remains.stack]).rstrip())
    path = write_crash_report(error, run_dir=run_dir, kind="killed", context=context, other_dirs=other_dirs)
    copy_to_known_folder(path)
    return path


def newest_failure(run_dir: Path, report_dirs: Sequence[Path]) -> tuple[Path, dict[str, Any]] | None:
    """The report of what failed in `run_dir` since it was last at work, or of a last start that came to no run folder.

    A stop by a signal is no failure. `report_dirs` are shared by all runs: only the last start's report counts there.
    """
    own = newer("crash_*.json", [run_dir / "errors"], last_work(run_dir))
    pid = _pid_of_last_start()
    shared = newer(f"crash_*_{pid}-*.json", report_dirs, 0.0) if pid else []
    for path in [*own, *shared]:
        report = _load(path)
        if report.get("kind") not in _QUIET_KINDS:
            return path, report
    return None


def last_work(run_dir: Path) -> float:
    """When a start last began to work in the folder (seconds since the epoch); 0 when none has."""
    manifest = run_dir / MANIFEST_NAME
    return manifest.stat().st_mtime if manifest.exists() else 0.0


def newer(pattern: str, folders: Sequence[Path], since: float) -> list[Path]:
    """The files of that pattern that were written after `since`, the newest first."""
    times = {path: path.stat().st_mtime for folder in folders for path in folder.glob(pattern)}
    return sorted((path for path, time in times.items() if time >= since), key=lambda path: times[path], reverse=True)


def _pid_of_last_start() -> str | None:
    """Process of the newest log that is not ours."""
    logs = sorted((path for folder in log_dirs() for path in folder.glob(f"{NAMES}.log")), key=lambda path: path.name)
    pids = [path.stem.rpartition("-")[2] for path in logs]
    return next((pid for pid in reversed(pids) if pid != str(os.getpid())), None)


def _arguments(log: Path | None) -> list[str] | None:
    if log is None:
        return None
    with log.open(encoding="utf-8", errors="replace") as file:
        return file.readline().split()[2:]  # behind the name and the version


def _load(path: Path) -> dict[str, Any]:
    try:
        report: Any = strict_json.load_file(path)
    except (OSError, strict_json.StrictJsonError):
        return {"kind": "unknown", "exception_type": "a report that cannot be read", "config": None}
    return report if isinstance(report, dict) else {}
