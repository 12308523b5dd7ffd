"""The machine is asked to stay awake, let go at the end, and never a reason to fail."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sigma_app import awake
from sigma_app.awake import keep_awake

posix = pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for systemd-inhibit")


def ends(pid: int) -> bool:
    """Whether a process ends within seconds; one that nobody has asked for its exit code has ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def inhibitor(folder: Path, script: str) -> Path:
    """A systemd-inhibit that writes its arguments to a file, then does what `script` says."""
    folder.mkdir()
    program = folder / "systemd-inhibit"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{script}\n')
    program.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return folder


@posix
def test_the_lock_is_held_inside_and_released_at_the_end(tmp_path: Path):
    folder = inhibitor(tmp_path / "bin", "touch $(dirname $0)/held; cat; rm $(dirname $0)/held")
    said: list[str] = []
    with keep_awake(said.append):
        assert (folder / "held").exists()
    assert not (folder / "held").exists()
    assert said == ["the machine stays awake while it trains"]
    assert (folder / "calls").read_text() == "--what=idle:sleep --who=SIGMA --why=training --mode=block cat\n"


@posix
def test_without_the_right_to_block_sleep_it_says_that_it_is_not_idle(tmp_path: Path):
    folder = inhibitor(tmp_path / "bin", 'case "$1" in *sleep) echo "Access denied" >&2; exit 1;; *) exec cat;; esac')
    said: list[str] = []
    with keep_awake(said.append):
        pass
    assert said == ["the machine stays awake while it trains"]
    assert [line.split()[0] for line in (folder / "calls").read_text().splitlines()] == [
        "--what=idle:sleep",
        "--what=idle",
    ]


@posix
@pytest.mark.parametrize(
    "script, reason",
    [
        ("echo 'Failed to connect to bus' >&2; exit 1", "Failed to connect to bus"),
        ("exit 0", "systemd-inhibit gave no answer"),
    ],
    ids=["refused", "silent"],
)
def test_a_refusal_is_one_line_and_no_failure(tmp_path: Path, script: str, reason: str):
    inhibitor(tmp_path / "bin", script)
    said: list[str] = []
    with keep_awake(said.append):
        pass
    assert said == [f"the machine may fall asleep while it trains: {reason}"]


@posix
def test_a_helper_that_outlives_the_refusal_does_not_hold_up_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """systemd-inhibit starts an agent for passwords, which keeps its stderr open."""
    monkeypatch.setattr(awake, "ANSWER_S", 1.5)
    folder = inhibitor(tmp_path / "bin", "sleep 60 & echo $! >> $(dirname $0)/helpers; wait")
    said: list[str] = []
    begin = time.monotonic()
    with keep_awake(said.append):
        pass
    assert time.monotonic() - begin < 20
    assert said == ["the machine may fall asleep while it trains: systemd-inhibit gave no answer"]
    helpers = [int(line) for line in (folder / "helpers").read_text().split()]
    assert helpers
    assert all(ends(pid) for pid in helpers)


@posix
def test_a_lock_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(awake, "ANSWER_S", 0.5)
    folder = inhibitor(tmp_path / "bin", "echo $$ > $(dirname $0)/pid; head -n 1; sleep 60")
    said: list[str] = []
    with keep_awake(said.append):
        pass
    assert said == ["the machine stays awake while it trains"]
    assert ends(int((folder / "pid").read_text()))


@posix
def test_a_machine_without_logind_trains_too(tmp_path: Path):
    os.environ["PATH"] = str(tmp_path)
    said: list[str] = []
    with keep_awake(said.append):
        pass
    assert said == ["the machine may fall asleep while it trains: systemd-inhibit was not found"]


@pytest.mark.parametrize("answer, held", [(0x80000000, True), (0, False)], ids=["granted", "refused"])
def test_windows_is_told_once_and_told_back(answer: int, held: bool, monkeypatch: pytest.MonkeyPatch):
    states: list[int] = []

    def set_state(state: ctypes.c_uint) -> int:
        states.append(state.value)
        return answer

    kernel32 = SimpleNamespace(SetThreadExecutionState=set_state)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    said: list[str] = []
    with keep_awake(said.append):
        pass
    assert states == ([0x80000001, 0x80000000] if held else [0x80000001])
    assert ("stays awake" in said[0]) == held


@posix
def test_a_killed_trainer_does_not_keep_the_machine_awake(tmp_path: Path):
    folder = inhibitor(tmp_path / "bin", "touch $(dirname $0)/held; cat; rm $(dirname $0)/held")
    code = "import os\nfrom sigma_app.awake import keep_awake\nwith keep_awake(print): os.kill(os.getpid(), 9)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -9
    deadline = time.monotonic() + 10
    while (folder / "held").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not (folder / "held").exists()
