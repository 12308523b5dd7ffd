"""The machine does not fall asleep while it trains. Nothing here can stop a run: what happened is one line of text."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from sigma_app.doctor import foreign_environment

ANSWER_S = 3.0
_ES_SYSTEM_REQUIRED, _ES_CONTINUOUS = 0x00000001, 0x80000000
_WHAT = ("idle:sleep", "idle")  # a remote session may not block sleep on request, but may say that it is not idle
_HELD = "the machine stays awake while it trains"
_NOT_HELD = "the machine may fall asleep while it trains"


@contextmanager
def keep_awake(say: Callable[[str], None]) -> Iterator[None]:
    """Inside, the machine is asked not to sleep; `say` gets one line about the answer.

    Linux: `systemd-inhibit` holds logind's lock around a `cat` that ends with this process, however that ends.
    Windows: SetThreadExecutionState, which the system takes back with the thread.
    """
    release: Callable[[], None] = _nothing
    try:
        if sys.platform == "win32":
            release = _hold_windows()
        else:
            release = _hold_logind()
        say(_HELD)
    except OSError as error:
        say(f"{_NOT_HELD}: {error}")
    try:
        yield
    finally:
        with suppress(OSError):  # the system lets go of both when the process ends
            release()


def _nothing() -> None:
    """For a machine that gave no lock."""


def _hold_windows() -> Callable[[], None]:
    set_state: Any = ctypes.windll.kernel32.SetThreadExecutionState  # pyright: ignore[reportAttributeAccessIssue]
    if not set_state(ctypes.c_uint(_ES_CONTINUOUS | _ES_SYSTEM_REQUIRED)):
        raise OSError("Windows refused the request")
    return lambda: set_state(ctypes.c_uint(_ES_CONTINUOUS))


def _hold_logind() -> Callable[[], None]:
    """The lock of systemd-logind. Raises OSError with the reason when there is none to be had."""
    program = shutil.which("systemd-inhibit")
    if program is None:
        raise OSError("systemd-inhibit was not found")
    reason = ""
    for what in _WHAT:
        command = [program, f"--what={what}", "--who=SIGMA", "--why=training", "--mode=block", "cat"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=foreign_environment(),
            start_new_session=True,  # Ctrl+C in the terminal is for the trainer
        )  # fmt: skip
        if _echoes(process):
            return lambda held=process: _end(held)
        reason = _last_words(process) or "systemd-inhibit gave no answer"
    raise OSError(reason.splitlines()[-1])


def _echoes(process: subprocess.Popen[bytes]) -> bool:
    """Whether `cat` runs: it does as soon as the lock is held, and never without it."""
    assert process.stdin is not None
    assert process.stdout is not None
    answer: list[bytes] = []

    def read(stream: IO[bytes]) -> None:
        answer.append(stream.readline())

    reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    reader.start()
    with suppress(BrokenPipeError):  # it has ended already; its last words tell why
        process.stdin.write(b"held\n")
        process.stdin.flush()
    reader.join(ANSWER_S)
    return answer == [b"held\n"]


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """What a process that gave no lock wrote to stderr."""
    process.kill()
    try:
        return process.communicate(timeout=ANSWER_S)[1].decode(errors="replace").strip()
    except subprocess.TimeoutExpired:  # something that it started, such as an agent for passwords, holds the pipe
        _kill_all(process)
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe: `cat` ends, systemd-inhibit lets go."""
    try:
        process.communicate(timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        _kill_all(process)


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill everything that it started; it leads a session of its own. The pipes are closed, not read to their end."""
    if sys.platform != "win32":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
