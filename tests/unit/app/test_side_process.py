"""A process that a library starts from the executable leaves a file behind only when it crashed below Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sigma_app.logfile import log_dir
from sigma_app.side_process import is_side_process

EXECUTABLE = """\
import sys
sys.frozen = True
sys.argv = ["sigma", *sys.argv[1:]]
from sigma_app.__main__ import start
start()
"""


def run_side_process(*words: str, depth: str = "1") -> subprocess.CompletedProcess[str]:
    """What `sigma -c CODE` does in the executable, started by another process of the program."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SIGMA_LAUNCH_DEPTH": depth}
    return subprocess.run([sys.executable, "-c", EXECUTABLE, *words], env=environment, capture_output=True, text=True)


def test_only_a_child_is_one():
    assert not is_side_process()
    os.environ["SIGMA_LAUNCH_DEPTH"] = "1"
    assert is_side_process()


@pytest.mark.skipif(sys.platform == "win32", reason="exit codes of native crashes differ there")
def test_a_native_crash_leaves_its_stack(home: Path):
    done = run_side_process("-c", "import ctypes\ndef in_the_worker(): ctypes.string_at(0)\nin_the_worker()")
    assert done.returncode == -11
    (path,) = log_dir().glob("*.faults")
    assert "Segmentation fault" in path.read_text()
    assert "in in_the_worker" in path.read_text()


def test_a_good_end_leaves_nothing(home: Path):
    assert run_side_process("-c", "print(2 + 3)").stdout == "5\n"
    assert list(log_dir().iterdir()) == []


def test_an_exception_reaches_the_process_that_started_it(home: Path):
    done = run_side_process("-c", "raise ValueError('from the worker')")
    assert done.returncode == 1
    assert "from the worker" in done.stderr
    assert list(log_dir().iterdir()) == []


def test_a_closed_log_folder_is_no_reason_to_fail(tmp_path: Path):
    (tmp_path / "state").write_text("a file where the folder would be")
    assert run_side_process("-c", "print(5)").stdout == "5\n"
