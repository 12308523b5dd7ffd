"""One trainer per run directory: an operating-system lock, so that a killed process never leaves it behind.

The lock is on a byte far behind the text of `run.lock`; the text names the holder and stays readable. POSIX record
locks are used on purpose: a forked child does not inherit them, so an orphan cannot keep a dead trainer's run. Their
price: a process that holds the lock must not open and close `run.lock` itself, which would drop it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, cast

from sigma.core.errors import ConfigError, SigmaError

LOCK_NAME = "run.lock"
_LOCK_OFFSET = 1 << 30
_held: set[Path] = set()


class RunLockedError(SigmaError):
    """Another process trains in this folder; the message names it. Not a crash: the user chooses another folder."""

    exit_code = 2


class RunLock:
    """The exclusive right to write into a run directory. Use as a context manager or `acquire` / `release`."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir.resolve() / LOCK_NAME
        self.took_over_pid: int | None = None
        """Pid of a process that died without releasing the lock, when there was one."""
        self._fd: int | None = None

    def acquire(self) -> RunLock:
        """Take the lock or raise RunLockedError naming the holder. Creates the directory.

        Raises ConfigError where the file may not be written, because the folder is another's.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path in _held:
            raise RunLockedError(_held_message(self.path.parent, _this_process()))
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        except (PermissionError, IsADirectoryError) as error:
            raise ConfigError(f"--output-dir: {self.path}: {error.strerror}; give another folder") from None
        try:
            if not _try_lock(fd):
                raise RunLockedError(_held_message(self.path.parent, _read_holder(fd)))
            self.took_over_pid = cast("int | None", _read_holder(fd).get("pid"))
            _write_holder(fd, _this_process() | {"since": round(time.time(), 3)})
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        _held.add(self.path)
        return self

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._fd is None:
            return
        os.ftruncate(self._fd, 0)
        _unlock(self._fd)
        os.close(self._fd)
        self._fd = None
        _held.discard(self.path)

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _held_message(run_dir: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder.get('host', 'this machine')}" if "pid" in holder else "another process"
    return f"{run_dir} is in use by {who}; stop that one first, or give another --output-dir"


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _read_holder(fd: int) -> dict[str, Any]:
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        holder: Any = json.loads(os.read(fd, 4096) or b"{}")
    except ValueError:  # a writer was killed inside the write: the lock itself is still exact
        return {}
    return cast("dict[str, Any]", holder) if isinstance(holder, dict) else {}


def _write_holder(fd: int, holder: dict[str, Any]) -> None:
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, json.dumps(holder).encode())


if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        os.lseek(fd, _LOCK_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _unlock(fd: int) -> None:
        os.lseek(fd, _LOCK_OFFSET, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCK_OFFSET)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: held by somebody
            return False
        return True

    def _unlock(fd: int) -> None:
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, _LOCK_OFFSET)
