"""Every way to fail leaves a redacted report whose path is the last line of the output.

Faults are injected by code that the child runs before the program's `main`; the product has no hooks for tests.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sigma.core.strict_json import load_file

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUv"
LONG = ("--steps", "100000", "--save-interval", "5")

FAIL_AT_START = f"""
import sigma.build
def build_model(*_):
    raise RuntimeError("cannot build with token={SECRET}")
sigma.build.build_model = build_model
"""
FAIL_IN_STEP_7 = f"""
import sigma.train.step as step
train = step.Stepper.train
def failing(self, s, scale):
    if s.step == 7:
        raise RuntimeError("step failed for {SECRET}")
    return train(self, s, scale)
step.Stepper.train = failing
"""
FAIL_IN_DATA_THREAD = f"""
import threading, sigma.data.stream as stream
produce, made = stream.BatchStream._produce, []
def failing(self):
    made.append(threading.current_thread().name)
    if len(made) == 12:
        assert made[-1] != threading.main_thread().name
        raise ValueError("bad document at https://user:{SECRET}@host/x")
    return produce(self)
stream.BatchStream._produce = failing
"""
OUT_OF_MEMORY_FROM_STEP_3 = """
import torch, sigma.train.step as step
accumulate = step.Stepper._accumulate
def failing(self, s):
    if s.step >= 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    return accumulate(self, s)
step.Stepper._accumulate = failing
"""
FULL_DISK_AT_STEP_10 = """
import errno, os, sigma.core.files as files
write, opened = os.write, os.open
watched = set()
def open_(path, *args, **kwargs):
    fd = opened(path, *args, **kwargs)
    (watched.add if "checkpoints/step-000000010" in str(path) else watched.discard)(fd)
    return fd
def full(fd, data):
    if fd in watched:
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(fd, data)
files.os.open, files.os.write = open_, full
"""


def report_of(child, run_dir):
    """The report that the last line names; checks what all reports share."""
    line = child.last_line()
    label, _, path = line.partition(": ")
    assert label in ("crash report", "report of the stop"), child.output()[-2000:]
    path = Path(path)
    assert path.parent == run_dir / "errors"
    assert path.name.startswith("crash_")
    assert list((run_dir / "errors").iterdir()) == [path]
    assert SECRET not in path.read_text()
    report = load_file(path)
    assert report["argv"][0] == "train"
    assert report["versions"]["torch"]
    return report


def fill(file):
    """Write until the disk is full."""
    with contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))


def newest_checkpoint(run_dir):
    return max(path.parent.name for path in run_dir.glob("checkpoints/*/COMMIT"))


def test_a_failed_start_is_reported(program, tmp_path):
    child = program.train(tmp_path / "run", "--steps", "9", patch=FAIL_AT_START)
    assert child.wait() == 1
    report = report_of(child, tmp_path / "run")
    assert report["kind"] == "startup"
    assert report["exception"] == "cannot build with token=[redacted]"
    assert report["step"] is None


def test_an_exception_in_a_step_is_reported_with_what_the_run_knew(program, tmp_path):
    child = program.train(tmp_path / "run", *LONG, patch=FAIL_IN_STEP_7)
    assert child.wait() == 1
    report = report_of(child, tmp_path / "run")
    assert (report["kind"], report["exception_type"], report["step"]) == ("step", "RuntimeError", 6)
    assert "in failing" in report["traceback"]
    assert report["tokens_seen"] == 6 * 8 * 32
    assert report["optimizer"] == "muon"
    assert report["last_metrics"]["step"] == 6
    assert [row["step"] for row in report["last_rows"] if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert report["config"]["model"]["d_model"] == 32
    assert report["feature_calls"]["feature_instant_calls"] > 0
    assert report["rng_digest"]["torch"]
    assert newest_checkpoint(tmp_path / "run") == "step-000000005"


def test_an_exception_in_the_data_thread_is_reported_as_such(program, tmp_path):
    child = program.train(tmp_path / "run", *LONG, patch=FAIL_IN_DATA_THREAD)
    assert child.wait() == 1
    report = report_of(child, tmp_path / "run")
    assert report["kind"] == "data_thread"
    assert "bad document" in report["traceback"]


def test_out_of_memory_with_one_row_is_reported_as_such(program, tmp_path):
    child = program.train(tmp_path / "run", *LONG, patch=OUT_OF_MEMORY_FROM_STEP_3)
    assert child.wait() == 1
    report = report_of(child, tmp_path / "run")
    assert report["kind"] == "out_of_memory"
    assert "Tried to allocate" in report["traceback"]
    halvings = [row for row in program.rows(tmp_path / "run") if row.get("event") == "micro_batch_halved"]
    assert [(row["before"], row["after"]) for row in halvings] == [(4, 2), (2, 1)]


def test_a_full_disk_in_a_save_is_reported_and_the_run_continues_when_there_is_room(program, tmp_path):
    run_dir = tmp_path / "run"
    child = program.train(run_dir, *LONG, patch=FULL_DISK_AT_STEP_10)
    assert child.wait() == 1
    report = report_of(child, run_dir)
    assert (report["kind"], report["step"]) == ("disk_full", 10)
    assert newest_checkpoint(run_dir) == "step-000000005"
    again = program.train(run_dir, *LONG)
    again.wait_for(lambda: newest_checkpoint(run_dir) >= "step-000000010")
    again.send(signal.SIGTERM)
    assert again.wait() == 143
    resumed = [row["checkpoint_resume_step"] for row in program.rows(run_dir) if row["kind"] == "startup"]
    assert resumed == [None, 5]


def test_a_disk_that_is_really_full_is_reported_on_that_disk(program, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    if sys.platform != "linux" or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here; the test before injects the same error")
    try:
        run_dir = disk / "run"
        child = program.train(run_dir, *LONG)
        child.wait_for(lambda: (run_dir / "checkpoints" / "step-000000005" / "COMMIT").exists())
        with open(disk / "other", "wb", buffering=0) as other:  # another program fills the disk
            fill(other)
        assert child.wait() == 1
        report = report_of(child, run_dir)
        assert report["kind"] == "disk_full"
        assert newest_checkpoint(run_dir) >= "step-000000005"
    finally:
        if child.alive():
            child.kill()
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 143)])
def test_a_signal_saves_then_reports(program, tmp_path, name, code):
    run_dir = tmp_path / "run"
    child = program.train(run_dir, "--steps", "100000", "--save-interval", "0")
    child.wait_for(lambda: sum(row["kind"] == "train" for row in program.rows(run_dir)) >= 3)
    child.send(getattr(signal, name))
    assert child.wait() == code
    report = report_of(child, run_dir)
    assert (report["kind"], report["exception_type"], report["traceback"]) == ("signal", name, None)
    assert report["step"] >= 3
    assert newest_checkpoint(run_dir) == f"step-{report['step']:09d}"


def test_no_report_is_written_when_it_is_switched_off(program, tmp_path):
    child = program.train(tmp_path / "run", *LONG, "--no-crash-report-enabled", patch=FAIL_IN_STEP_7)
    assert child.wait() == 1
    assert not (tmp_path / "run" / "errors").exists()
    assert "step failed" in child.output()
