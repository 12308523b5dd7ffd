"""The next start tells how the last one ended, and writes the report of a process that could not."""

import json
import os
from pathlib import Path

import pytest

from sigma.core.strict_json import load_file
from sigma_app.last_run import told_at_start
from sigma_app.logfile import log_dir

DEAD = 4242
STACK = 'Fatal Python error: Segmentation fault\n\nCurrent thread 0x1:\n  File "step.py", line 7 in train\n'


@pytest.fixture
def run(home: Path) -> Path:
    """A run that was at step 12, with the log of its process."""
    folder = home / "run"
    (folder / "errors").mkdir(parents=True)
    rows = [{"kind": "startup", "step": 0}, {"kind": "train", "step": 12, "loss": 5.5}, {"kind": "sample", "step": 12}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    log_dir().mkdir(parents=True)
    log(DEAD, "20260101T000000Z", "SIGMA 0.1.0 train --steps 99 --hf-token [redacted]\nwords\n")
    return folder


def log(pid: int, time: str, text: str = "SIGMA 0.1.0\n") -> Path:
    path = log_dir() / f"{time}-{pid}.log"
    path.write_text(text)
    return path


def report(folder: Path, pid: int, kind: str = "step", **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"crash_20260101T000000Z_step-000000007_{pid}-0.json"
    path.write_text(
        json.dumps({"kind": kind, "exception_type": "ValueError", "exception": "bad\nvalue", "step": 7} | values)
    )
    return path


def manifest(run: Path, age_s: float) -> None:
    path = run / "run_manifest.json"
    path.write_text("{}")
    now = path.stat().st_mtime
    os.utime(path, (now - age_s, now - age_s))


def test_a_clean_end_needs_no_word(run: Path):
    assert told_at_start(run, None, []) == []


def test_a_killed_process_is_named_with_its_step_and_gets_its_report(run: Path):
    first, second = told_at_start(run, DEAD, [])
    assert first.startswith(
        f"the last start here did not end cleanly: process {DEAD} stopped after step 12; it was killed"
    )
    path = Path(second.removeprefix("crash report: "))
    assert path.parent == run / "errors"
    found = load_file(path)
    assert (found["kind"], found["step"], found["last_metrics"]["loss"]) == ("killed", 12, 5.5)
    assert found["argv"] == ["train", "--steps", "99", "--hf-token", "[redacted]"]
    assert found["versions"]["python"]
    assert f"{DEAD}.log" in found["exception"]


def test_no_report_is_written_when_reports_are_switched_off(run: Path):
    (line,) = told_at_start(run, DEAD, [], write=False)
    assert f"process {DEAD} stopped" in line
    assert list((run / "errors").iterdir()) == []


def test_the_user_of_the_executable_finds_a_copy(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sigma_app.bootstrap.known_errors_dir", lambda: tmp_path)
    path = Path(told_at_start(run, DEAD, [])[1].removeprefix("crash report: "))
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_stack_of_a_native_crash_is_in_the_report(run: Path):
    (log_dir() / f"20260101T000000Z-{DEAD}.faults").write_text(STACK)
    first, second = told_at_start(run, DEAD, [])
    assert "it crashed below Python (Segmentation fault)" in first
    assert 'File "step.py", line 7 in train' in load_file(Path(second.removeprefix("crash report: ")))["exception"]


def test_a_process_that_left_nothing_is_reported_too(home: Path):
    (home / "run").mkdir()
    first, second = told_at_start(home / "run", 7, [])
    assert "process 7 stopped; it was killed" in first
    assert load_file(Path(second.removeprefix("crash report: ")))["argv"] is None


def test_a_report_since_the_run_last_worked_is_told_in_one_line(run: Path):
    manifest(run, age_s=60)
    path = report(run / "errors", DEAD)
    assert told_at_start(run, None, []) == [
        "the last start ended with an error after step 7: ValueError: bad value",
        f"crash report: {path}",
    ]


@pytest.mark.parametrize("kind", ["signal", "killed"])
def test_a_polite_stop_and_what_was_already_told_are_not_told(run: Path, kind: str):
    report(run / "errors", DEAD, kind)
    assert told_at_start(run, None, []) == []


def test_a_failure_that_was_followed_by_a_start_is_old_news(run: Path):
    report(run / "errors", DEAD)
    manifest(run, age_s=-60)
    assert told_at_start(run, None, []) == []


@pytest.mark.parametrize("pid, told", [(DEAD, 2), (DEAD - 1, 0)], ids=["the-last-start", "an-older-start"])
def test_in_a_shared_folder_only_the_last_start_counts(run: Path, home: Path, pid: int, told: int):
    log(os.getpid(), "20260201T000000Z")
    report(home / "errors", pid, "startup")
    assert len(told_at_start(run, None, [home / "errors"])) == told


def test_a_damaged_report_is_still_a_report(run: Path):
    report(run / "errors", DEAD).write_text("{")
    assert "a report that cannot be read" in told_at_start(run, None, [])[0]


def test_a_native_crash_of_a_side_process_is_told(run: Path):
    manifest(run, age_s=60)
    faults = log_dir() / "20260101T000001Z-99.faults"
    faults.write_text(STACK)
    assert told_at_start(run, None, []) == [
        f"since the last start a process of this program crashed below Python: {faults}"
    ]
    manifest(run, age_s=-60)
    assert told_at_start(run, None, []) == []
