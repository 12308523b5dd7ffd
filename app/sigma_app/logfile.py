"""A copy of everything printed, in a file that survives the window; native crashes are written there too."""

from __future__ import annotations

import faulthandler
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from sigma.core import paths
from sigma.core.redact import redact_text

MAX_BYTES = 16 << 20
KEPT_LOGS = 20
NAMES = "????????T??????Z-*"
"""Of our files, as a glob pattern: a folder called logs may hold those of others."""
FAULTS_SUFFIX = ".faults"
"""Of the file beside the log that holds the stack of a native crash."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)")


def log_dir() -> Path:
    """Folder of the log files."""
    return paths.state_dir() / "logs"


def log_dirs() -> list[Path]:
    """Where log files can be: the usual folder, and the one beside the runs for a read-only home."""
    return [log_dir(), paths.data_dir() / "logs"]


class Tee:
    """A text stream that also writes to a log: without terminal codes and secrets, and only up to MAX_BYTES."""

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        """Write to the stream, then to the log; neither a full disk nor a closed window ever stops the program."""
        try:
            self._stream.write(text)
        except OSError:
            self._leave_screen()
        try:
            if not self._log.closed and self._log.tell() < MAX_BYTES:
                self._log.write(redact_text(_ESCAPES.sub("", text)))
        except OSError:
            self._log.close()  # what was printed is still on the screen
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except OSError:
            self._leave_screen()

    def _leave_screen(self) -> None:
        """The window or pipe is gone: a run goes on without it, and its words are in the log."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with suppress(OSError, ValueError):  # a full disk, or a log that is closed already
            self._log.write("[the window or pipe was closed; what follows is in this file only]\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class LogFile:
    """Copies stdout and stderr to `logs/<time>-<pid>.log` until `close`."""

    def __init__(self, first_line: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_old_logs(folder)
        self.path = folder / log_name()
        self._file = self.path.open("a", encoding="utf-8", errors="replace", buffering=1)
        self._file.write(first_line + "\n")
        self._streams = sys.stdout, sys.stderr
        self._faults_were_on = faulthandler.is_enabled()
        sys.stdout, sys.stderr = Tee(sys.stdout, self._file), Tee(sys.stderr, self._file)  # pyright: ignore
        self._fault_file = self.path.with_suffix(FAULTS_SUFFIX).open("w")
        faulthandler.enable(self._fault_file)

    def close(self) -> None:
        """Give the streams back; an empty fault file is removed."""
        sys.stdout, sys.stderr = self._streams
        faulthandler.disable()
        if self._faults_were_on and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        self._fault_file.close()
        self._file.close()
        faults = Path(self._fault_file.name)
        if faults.exists() and faults.stat().st_size == 0:
            faults.unlink()


def log_name() -> str:
    """A name that sorts by time and ends in the process."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.log"


def remove_old_logs(folder: Path) -> None:
    """Keep the newest KEPT_LOGS log files, and the fault files that hold something."""
    for pattern in (f"{NAMES}.log", f"{NAMES}{FAULTS_SUFFIX}"):
        for path in sorted(folder.glob(pattern))[:-KEPT_LOGS]:
            path.unlink(missing_ok=True)
