"""Durable files: atomic replacement, hashing while writing, and lines that a kill cannot tear unnoticed.

Every system call that can fail on a full or failing disk goes through `os` here, so that a test can make each one fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from sigma.core.errors import SigmaError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

TEMP_SUFFIX = ".tmp"
_BUFFER_BYTES = 1 << 20
_serial = itertools.count()

# Windows error codes that pass when the other program lets go of the file, each with what usually causes it.
_WINDOWS_HINTS = {
    5: "access is denied: give your account write permission on the folder, or close the program that uses the file",
    32: "another program holds the file: a virus scanner, a sync client, an editor; exclude the run folder there",
    145: "the folder is not empty: a file inside is still open in another program; close it",
}
_RETRY_DELAYS_S = tuple(min(0.05 * 2**n, 3.2) for n in range(8))  # 9.5 s together


class FileBusyError(SigmaError, OSError):
    """A file stayed locked or denied through all retries; the message says what usually holds it."""


class _HashingRaw(io.RawIOBase):
    """An unbuffered file that hashes what the system accepted."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(path, flags, 0o666)
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Buffer, /) -> int:
        count = os.write(self._fd, data)
        self.hash.update(memoryview(data)[:count])
        return count

    def close(self) -> None:
        if not self.closed:
            super().close()
            fd, self._fd = self._fd, -1  # a late write must not reach a file that got this number since
            os.close(fd)


def write_durable(path: Path, data: bytes | Callable[[BinaryIO], None]) -> str:
    """Write `path` in place, force it to the disk, and return the SHA-256 (hex) of what was written.

    For files that nobody reads before something else publishes them. Raises OSError; a partial file may then remain.
    """
    raw = _HashingRaw(path)
    try:
        if callable(data):
            buffer = io.BufferedWriter(raw, _BUFFER_BYTES)
            data(cast("BinaryIO", buffer))
            buffer.flush()
            buffer.detach()
        else:
            _write_all(raw, data)
        os.fsync(raw.fileno())
        return raw.hash.hexdigest()
    finally:
        raw.close()


def _write_all(raw: _HashingRaw, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[raw.write(rest) :]


def write_atomic(path: Path, data: bytes | Callable[[BinaryIO], None]) -> str:
    """Replace `path` so that a reader, a kill or a power loss finds the old or the new content, never a mixture.

    Writes a sibling `*.tmp`, forces it to the disk, renames it over `path` and forces the folder. Returns the SHA-256.
    Raises OSError (the temporary file is removed), FileBusyError when Windows keeps refusing the rename.
    """
    temp = path.with_name(f"{path.name}.{os.getpid()}-{next(_serial)}{TEMP_SUFFIX}")
    try:
        digest = write_durable(temp, data)
        replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):  # what cannot be removed now is an orphan that the next start removes
            temp.unlink()
        raise
    fsync_dir(path.parent)
    return digest


def replace(source: Path, target: Path) -> None:
    """`os.replace`, patient with the Windows errors that pass by themselves (about 10 s), for a file or a folder."""
    for delay_s in (*_RETRY_DELAYS_S, None):
        try:
            return os.replace(source, target)
        except OSError as error:
            hint = _WINDOWS_HINTS.get(getattr(error, "winerror", None) or 0)
            if hint is None:
                raise
            if delay_s is None:
                raise FileBusyError(f"cannot rename {source} to {target}: {hint}") from error
            time.sleep(delay_s)


def fsync_dir(path: Path) -> None:
    """Force a folder's entries to the disk; Windows keeps them with the file and needs nothing."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, text: str) -> None:
    """Append `text` and a newline in one write; the text must be one line.

    Raises ValueError when the text holds a newline, OSError when the disk took only a part.
    """
    if "\n" in text or "\r" in text:
        raise ValueError("append_line takes one line without a line break")
    line = text.encode() + b"\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    fd = os.open(path, flags, 0o666)
    try:
        rest = memoryview(line)
        while rest:  # one write in practice; a full disk answers a part first and the error next
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)


def complete_torn_line(path: Path) -> bool:
    """End a last line that a kill cut off, so that the next one starts on its own; True when there was such a line."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            if file.read(1) == b"\n":
                return False
    except FileNotFoundError:
        return False
    append_line(path, "")
    return True
