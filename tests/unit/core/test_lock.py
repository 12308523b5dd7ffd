"""The run lock: exclusive between processes, named, and never left behind by a dead process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigma.core.errors import ConfigError
from sigma.core.lock import LOCK_NAME, RunLock, RunLockedError

HOLD = """
import sys, pathlib
from sigma.core.lock import RunLock
lock = RunLock(pathlib.Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.communicate()


def test_second_process_is_refused_and_told_the_pid_of_the_first(tmp_path: Path, holder: subprocess.Popen[str]):
    with pytest.raises(
        RunLockedError, match=rf"in use by process {holder.pid} on {socket.gethostname()}; .*--output-dir"
    ):
        RunLock(tmp_path).acquire()


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path, holder: subprocess.Popen[str]):
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK_NAME).read_text(), "the dead process left its name"
    with RunLock(tmp_path) as lock:
        assert lock.took_over_pid == holder.pid


def test_lock_is_free_again_after_a_clean_exit(tmp_path: Path, holder: subprocess.Popen[str]):
    holder.communicate("")
    with RunLock(tmp_path) as lock:
        assert lock.took_over_pid is None


def test_same_process_cannot_lock_twice(tmp_path: Path):
    with RunLock(tmp_path), pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
        RunLock(tmp_path / "x" / "..").acquire()
    with RunLock(tmp_path):
        pass


def test_release_twice_is_harmless_and_does_not_free_a_later_lock(tmp_path: Path):
    first = RunLock(tmp_path).acquire()
    first.release()
    with RunLock(tmp_path):
        first.release()
        with pytest.raises(RunLockedError):
            RunLock(tmp_path).acquire()


@pytest.mark.parametrize("content", ["{", "[1]", "null", "\0\0"], ids=["half-written", "list", "null", "zeros"])
def test_damaged_lock_file_does_not_stop_a_run(tmp_path: Path, content: str):
    (tmp_path / LOCK_NAME).write_text(content)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_holder_on_another_machine_is_named(tmp_path: Path, holder: subprocess.Popen[str]):
    (tmp_path / LOCK_NAME).write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    with pytest.raises(RunLockedError, match="process 7 on elsewhere"):
        RunLock(tmp_path).acquire()


@pytest.mark.skipif(sys.platform == "win32", reason="fork is POSIX")
def test_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path):
    script = (
        "import os, sys, pathlib, time\n"
        "from sigma.core.lock import RunLock\n"
        "RunLock(pathlib.Path(sys.argv[1])).acquire()\n"
        "child = os.fork()\n"
        "if child == 0:\n    os.close(1); time.sleep(30); os._exit(0)\n"
        "print(child, flush=True); os._exit(9)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
    child = int(done.stdout)
    try:
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(child, 9)


def test_a_lock_file_that_may_not_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(ConfigError, match=r"run\.lock: Is a directory; give another folder"):
        RunLock(tmp_path).acquire()
