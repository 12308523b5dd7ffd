"""Crash reports: `errors/crash_*.json`, strict JSON, redacted, written whole or not at all.

Imports no torch, so that a failed start-up can be reported; what torch knows is added when it is already loaded.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sigma.core import strict_json
from sigma.core.files import write_atomic
from sigma.core.redact import redact, redact_argv
from sigma.train.ballast import is_disk_full, release_ballast
from sigma.train.crash_facts import disk, environment, memory, rng_digest, versions

ERRORS_DIR = "errors"
METRIC_ROWS = 50
_TAIL_BYTES = 1 << 20
_serial = itertools.count()

CrashKind = Literal["startup", "step", "data_thread", "out_of_memory", "disk_full", "signal", "killed", "worker"]
"""`killed`: the process ended without a word, and the next start writes the report; `worker`: a side process failed."""


@dataclass
class CrashContext:
    """What the run knew when it failed; whoever learns something fills it in. None means not known yet."""

    step: int | None = None
    tokens_seen: int | None = None
    device: str | None = None
    last_metrics: Mapping[str, Any] | None = None
    feature_calls: Mapping[str, Any] | None = None
    algorithmic_features: Mapping[str, Any] | None = None
    optimizer: str | None = None
    config: Mapping[str, Any] | None = None
    argv: Sequence[str] | None = None
    last_batch_records: Sequence[Any] = field(default_factory=tuple)
    thread: str | None = None


def kind_of(error: BaseException, otherwise: CrashKind) -> CrashKind:
    """The kind that the exception itself (or its cause) tells, else `otherwise`, the place where it was caught."""
    if is_disk_full(error):
        return "disk_full"
    return "out_of_memory" if any(_is_out_of_memory(e) for e in _causes(error)) else otherwise


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch.OutOfMemoryError
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in text or "CUDA out of memory" in text)


def write_crash_report(
    error: BaseException | None,
    *,
    run_dir: Path | None,
    kind: CrashKind,
    context: CrashContext | None = None,
    signal_name: str | None = None,
    other_dirs: Sequence[Path] = (),
) -> Path:
    """Write the report into `<run_dir>/errors/`, else into the first of `other_dirs` that takes it; returns its path.

    `error` is None for a signal, which `signal_name` then names. A full disk costs the run its ballast. The system's
    temporary folder is the last resort. Raises OSError when not even that can be written.
    """
    report = redact(_report(error, run_dir, kind, context or CrashContext(), signal_name))
    text = strict_json.dumps(report, unknown=_describe, indent=1)
    if run_dir is not None and kind == "disk_full":
        release_ballast(run_dir)
    folders = [run_dir / ERRORS_DIR] if run_dir is not None else []
    folders += [*other_dirs, Path(tempfile.gettempdir()) / "sigma-errors"]
    for folder in folders[:-1]:
        try:
            return _write(folder, text, report["step"])
        except OSError as failure:
            if not (run_dir and is_disk_full(failure) and release_ballast(run_dir)):
                continue
        try:
            return _write(folder, text, report["step"])
        except OSError:
            continue
    return _write(folders[-1], text, report["step"])


def _write(folder: Path, text: str, step: int | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = folder / f"crash_{stamp}_step-{step or 0:09d}_{os.getpid()}-{next(_serial)}.json"
    write_atomic(path, text.encode())
    return path


def _report(
    error: BaseException | None, run_dir: Path | None, kind: CrashKind, context: CrashContext, signal_name: str | None
) -> dict[str, Any]:
    known = asdict(context)
    known["argv"] = None if context.argv is None else redact_argv(context.argv)
    rows = [] if run_dir is None else last_metric_rows(run_dir / "metrics.jsonl")
    return {
        "kind": kind,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "exception_type": type(error).__name__ if error is not None else signal_name,
        "exception": str(error) if error is not None else f"stopped by {signal_name}",
        "traceback": "".join(traceback.format_exception(error)) if error is not None else None,
        **known,
        "versions": _section(versions),
        "rng_digest": _section(rng_digest),
        "memory": _section(memory),
        "disk": _section(lambda: disk(run_dir or Path.cwd())),
        "environment": _section(environment),
        "last_rows": rows,
    }


def _section(collect: Callable[[], Any]) -> Any:
    try:
        return collect()
    except Exception as error:  # noqa: BLE001 - after a device fault any call may raise; the report says so and goes on
        return {"not_available": repr(error)}


def _describe(value: object) -> str:
    return repr(value)[:200]


def last_metric_rows(path: Path, most: int = METRIC_ROWS) -> list[Any]:
    """The last rows of a metrics file; torn or foreign lines are left out, a missing file has none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    rows: list[Any] = []
    for line in lines[-most:]:
        try:
            rows.append(strict_json.loads(line))
        except strict_json.StrictJsonError:
            continue
    return rows
