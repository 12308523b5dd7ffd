"""Ends that the program cannot report itself, and ends before the first step: the next start knows of each of them."""

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from sigma.core.strict_json import load_file
from tests.e2e.conftest import TINY
from tests.e2e.frozen_program import FOREVER, Frozen, single

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and signals")

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUv"
FAIL_IN_STEP_3 = """
import sigma.train.step as step
train = step.Stepper.train
def failing_step(self, s, scale):
    if s.step == 3:
        {failure}
    return train(self, s, scale)
step.Stepper.train = failing_step
"""
SEGMENTATION_FAULT = FAIL_IN_STEP_3.format(failure="import ctypes; ctypes.string_at(0)")
OUT_OF_MEMORY_KILL = FAIL_IN_STEP_3.format(failure="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
EXCEPTION = FAIL_IN_STEP_3.format(failure=f"raise RuntimeError('bad step for {SECRET}')")
EXCEPTION_IN_A_THREAD = """
import threading, sigma.train.step as step
train = step.Stepper.train
def with_a_thread(self, s, scale):
    if s.step == 3:
        thread = threading.Thread(target=lambda: 1 / 0, name="helper")
        thread.start()
        thread.join()
    return train(self, s, scale)
step.Stepper.train = with_a_thread
"""
SLOW_BUILD = """
import time, sigma.build
def build_model(*_):
    print("building", flush=True)
    time.sleep(60)
sigma.build.build_model = build_model
"""
SWALLOWED = """
import sigma.build
build = sigma.build.build_model
def build_model(*arguments):
    print("building", flush=True)
    import time
    try:
        time.sleep(60)
    except BaseException:  # as a callback of a library does
        pass
    return build(*arguments)
sigma.build.build_model = build_model
"""


def start_again(program, run_dir):
    """The next start, until it trains; what it said."""
    child = program.train(run_dir, *FOREVER)
    child.wait_for(lambda: "Ctrl+C saves" in child.output())
    child.kill()
    return child.output()


def named_report(output):
    (path,) = set(re.findall(r"^crash report: (.*)$", output, re.MULTILINE))
    return load_file(Path(path))


@pytest.mark.parametrize(
    "patch, code, cause",
    [
        (SEGMENTATION_FAULT, -signal.SIGSEGV, "it crashed below Python (Segmentation fault)"),
        (OUT_OF_MEMORY_KILL, -signal.SIGKILL, "it was killed, the memory ran out, or the machine lost power"),
    ],
    ids=["segmentation-fault", "out-of-memory-kill"],
)
def test_a_death_without_a_word_is_reported_by_the_next_start(program, tmp_path, patch, code, cause):
    run_dir = tmp_path / "run"
    child = program.train(run_dir, *FOREVER, "--hf-token", SECRET, patch=patch)
    assert child.wait() == code
    assert not list(run_dir.glob("errors/*")), "a dead process writes nothing"
    output = start_again(program, run_dir)
    assert f"process {child.pid} stopped after step 2; {cause}" in output
    report = named_report(output)
    assert (report["kind"], report["step"], report["last_metrics"]["step"]) == ("killed", 2, 2)
    assert report["argv"][-2:] == ["--hf-token", "[redacted]"]
    assert report["versions"]["torch"]
    assert ("in failing_step" in report["exception"]) == (code == -signal.SIGSEGV)
    assert SECRET not in single(run_dir / "errors", "crash_*").read_text()


@pytest.mark.parametrize("frozen", [False, True], ids=["from-source", "frozen"])
def test_the_next_start_tells_of_an_exception_once(program, tmp_path, frozen):
    if frozen:
        started = Frozen(program, tmp_path / "sigma", TINY + "--output-dir run\n")
        run_dir, child = started.folder / "run", started.start(*FOREVER, patch=EXCEPTION)
    else:
        run_dir = tmp_path / "run"
        child = program.train(run_dir, *FOREVER, patch=EXCEPTION)
    assert child.wait() == 1
    report = Path(child.last_line().removeprefix("crash report: "))
    assert report.parent == run_dir / "errors"
    if frozen:
        assert single(started.folder / "errors", "crash_*").read_bytes() == report.read_bytes()
    output = start_again(program, run_dir)
    told = "the last start ended with an error after step 2: RuntimeError: bad step for [redacted]"
    assert told in output
    assert named_report(output)["last_metrics"]["step"] == 2
    assert told not in start_again(program, run_dir)


def test_an_exception_in_any_thread_is_reported_and_the_run_goes_on(program, tmp_path):
    child = program.train(tmp_path / "run", *FOREVER, patch=EXCEPTION_IN_A_THREAD)
    child.wait_for(lambda: "step 4/" in child.output())
    child.kill()
    report = load_file(single(tmp_path / "run" / "errors", "crash_*"))
    assert (report["exception_type"], report["thread"]) == ("ZeroDivisionError", "helper")


def test_a_worker_that_fails_does_not_stop_the_run_and_the_next_start_names_its_report(program, tmp_path):
    (tmp_path / "wandb.py").write_text(f"def init(**_): raise ValueError('no login with {SECRET}')")
    run_dir = tmp_path / "run"
    patch = f"import os; os.environ['PYTHONPATH'] = {str(tmp_path)!r} + os.pathsep + os.environ['PYTHONPATH']"
    child = program.train(run_dir, *FOREVER, "--wandb", "offline", patch=patch)
    child.wait_for(lambda: list(run_dir.glob("errors/crash_*.json")))
    steps = len(program.rows(run_dir))
    child.wait_for(lambda: len(program.rows(run_dir)) > steps)
    child.send(signal.SIGTERM)
    assert child.wait() == 143
    output = start_again(program, run_dir)
    assert "the last start ended with an error: ValueError: no login with [redacted]" in output
    assert named_report(output)["kind"] == "worker"


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 143), ("SIGINT", 130)])
def test_a_signal_before_the_first_step_ends_the_start_at_once_with_a_report(program, tmp_path, name, code):
    child = program.train(tmp_path / "run", *FOREVER, patch=SLOW_BUILD)
    child.wait_for(lambda: "building\n" in child.output())  # unbuffered, the end of the line comes by itself
    began = time.monotonic()
    child.send(getattr(signal, name))
    assert child.wait() == code
    assert time.monotonic() - began < 30
    assert child.output().splitlines()[-2] == f"sigma: stopped by {name} before the first step; nothing is lost"
    report = load_file(Path(child.last_line().removeprefix("report of the stop: ")))
    assert (report["kind"], report["exception_type"], report["step"]) == ("signal", name, None)
    assert (tmp_path / "run" / "run.lock").read_text() == "", "released"


def test_a_signal_that_a_library_swallows_still_ends_the_run_before_its_first_step(program, tmp_path):
    child = program.train(tmp_path / "run", *FOREVER, patch=SWALLOWED)
    child.wait_for(lambda: "building\n" in child.output())  # unbuffered, the end of the line comes by itself
    child.send(signal.SIGTERM)
    assert child.wait() == 143
    assert "step 1/" not in child.output()


def test_a_fresh_interpreter_stopped_while_it_imports_leaves_with_one_line_and_a_report(program, tmp_path):
    child = program.train_real(tmp_path / "run", *FOREVER)
    child.wait_for(lambda: "loading torch" in child.output())
    child.send(signal.SIGTERM)
    assert child.wait() == 143
    assert "Traceback" not in child.output()
    assert load_file(Path(child.last_line().removeprefix("report of the stop: ")))["kind"] == "signal"
