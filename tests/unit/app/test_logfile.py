"""The log holds what was on the screen: readable, without secrets, bounded, and never in the way."""

import io
import os
import subprocess
import sys
from pathlib import Path

from sigma_app import logfile
from sigma_app.logfile import KEPT_LOGS, LogFile, Tee, remove_old_logs


def test_terminal_codes_and_secrets_stay_out_of_the_log():
    screen, log = io.StringIO(), io.StringIO()
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07 hf_abcdefghijklmn\n"
    assert Tee(screen, log).write(text) == len(text)
    assert screen.getvalue() == text
    assert log.getvalue() == "red  [redacted]\n"


def test_log_stops_growing_and_the_screen_goes_on(monkeypatch):
    monkeypatch.setattr(logfile, "MAX_BYTES", 10)
    screen, log = io.StringIO(), io.StringIO()
    tee = Tee(screen, log)
    for _ in range(10):
        tee.write("12345678")
    assert len(screen.getvalue()) == 80
    assert len(log.getvalue()) == 16


def test_full_disk_ends_the_log_not_the_program():
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    screen = io.StringIO()
    tee = Tee(screen, Full())
    tee.write("a")
    tee.write("b")
    assert screen.getvalue() == "ab"


def test_tee_is_the_stream_in_every_other_respect():
    screen = io.StringIO()
    assert Tee(screen, io.StringIO()).isatty() is False
    assert Tee(screen, io.StringIO()).getvalue() == ""


def test_oldest_logs_go_and_those_of_others_stay(home: Path):
    for number in range(KEPT_LOGS + 5):
        (home / f"20260101T{number:06d}Z-7.log").write_text("")
        (home / f"{number}-server.log").write_text("not ours")
    remove_old_logs(home)
    assert len(list(home.glob("*-server.log"))) == KEPT_LOGS + 5
    names = sorted(path.name for path in home.glob("*-7.log"))
    assert len(names) == KEPT_LOGS
    assert names[0] == "20260101T000005Z-7.log"


def test_native_crash_leaves_the_python_stack_in_the_fault_file():
    code = (
        "import ctypes\nfrom sigma_app.logfile import LogFile, log_dir\nlog = LogFile('x', log_dir())\n"
        "def touch_nothing():\n    ctypes.string_at(0)\ntouch_nothing()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    assert done.returncode != 0
    (faults,) = logfile.log_dir().glob("*.faults")
    assert "touch_nothing" in faults.read_text()


def test_close_gives_the_streams_back():
    before = sys.stdout, sys.stderr
    log = LogFile("first", logfile.log_dir())
    print("second")
    log.close()
    assert (sys.stdout, sys.stderr) == before
    assert log.path.read_text() == "first\nsecond\n"


def test_a_closed_window_is_left_and_the_log_goes_on():
    reader, writer = os.pipe()
    os.close(reader)
    log = io.StringIO()
    with os.fdopen(writer, "w") as screen:
        tee = Tee(screen, log)
        for line in ("one\n", "two\n"):
            tee.write(line)
            tee.flush()
    text = log.getvalue()
    assert text.startswith("one\n")
    assert text.endswith("two\n")
    assert text.count("closed") == 1
