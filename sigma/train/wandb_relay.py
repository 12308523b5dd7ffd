"""Copies metrics.jsonl to Weights & Biases from a process of its own, so that it can never stop or slow the training.

`start` is called by the trainer; `python -m sigma.train.wandb_relay RUN_DIR MODE PARENT_PID` is the process. It reads
the file like any other reader, ends when the run ends or its parent is gone, and writes its own log beside the metrics.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from sigma.train.crash import CrashContext, write_crash_report

LOG_NAME = "wandb_relay.log"
POLL_S = 1.0


def start(run_dir: Path, mode: str, parent_pid: int) -> subprocess.Popen[bytes]:
    """Start the side process; `mode` is `offline` or `online`. It writes `wandb_relay.log` in the run folder."""
    log = (run_dir / LOG_NAME).open("ab")
    command = [sys.executable, "-m", "sigma.train.wandb_relay", str(run_dir), mode, str(parent_pid)]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    finally:
        log.close()


def new_rows(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Complete rows of `path` from byte `offset` on, and the offset after them. A line still being written waits."""
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    rows: list[dict[str, Any]] = []
    for line in data[:end].splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            print(f"skipped a torn line of {len(line)} bytes", flush=True)
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows, offset + end


def follow(path: Path, parent_pid: int) -> Iterator[dict[str, Any]]:
    """Rows of `path` as they appear, until the parent has ended and everything was read."""
    offset = 0
    while True:
        alive = psutil.pid_exists(parent_pid)
        if path.exists():
            rows, offset = new_rows(path, offset)
            yield from rows
        if not alive:
            return
        time.sleep(POLL_S)


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The plottable values of a row, named `<kind>/<metric>`."""
    kind = row.get("kind", "row")
    return {
        f"{kind}/{name}": value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("step", "seg", "t", "v")
    }


def main(run_dir: Path, mode: str, parent_pid: int) -> None:
    """Relay until the run ends. wandb is imported only here."""
    import wandb  # pyright: ignore[reportMissingImports] - an optional extra

    run = wandb.init(project="sigma", name=run_dir.name, dir=str(run_dir), mode=mode, resume="allow", id=run_dir.name)
    for row in follow(run_dir / "metrics.jsonl", parent_pid):
        values = numbers(row)
        if values:
            run.log(values | {"train_step": row.get("step", 0)})
    run.finish()


def run(run_dir: Path, mode: str, parent_pid: int) -> None:
    """`main`, with a report among the run's crash reports when it fails."""
    try:
        main(run_dir, mode, parent_pid)
    except Exception as error:
        path = write_crash_report(error, run_dir=run_dir, kind="worker", context=CrashContext(argv=sys.argv[1:]))
        print(f"crash report: {path}", flush=True)
        raise


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
