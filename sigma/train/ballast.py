"""Room on the disk: asked for before a save, and a reserve that is given up when the disk is full after all.

The ballast is a file of zeros in the run folder. Removing it leaves room for the crash report and the event row.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from sigma.core.errors import SigmaError

BALLAST_NAME = "ballast.bin"
BALLAST_BYTES = 64 << 20
RESERVE_BYTES = 512 << 20
_WINDOWS_DISK_FULL = (39, 112)


class DiskFullError(SigmaError):
    """There is no room for a checkpoint; the message says how much to free and where."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or what caused it, is a full disk or an exhausted quota."""
    while error is not None:
        if isinstance(error, DiskFullError):
            return True
        if isinstance(error, OSError):
            windows_code = getattr(error, "winerror", None)
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or windows_code in _WINDOWS_DISK_FULL:
                return True
        error = error.__cause__ or error.__context__
    return False


def check_room(folder: Path, next_bytes: int) -> int:
    """Bytes free in `folder`; raise DiskFullError unless the next checkpoint fits twice with a reserve.

    Needed: 2 x the checkpoint + min(512 MiB, the checkpoint), so that a model of a few megabytes does not ask for half
    a gigabyte. Twice, because the checkpoint before it is deleted only after the next one has been read back.
    """
    free = shutil.disk_usage(folder).free
    needed = 2 * next_bytes + min(RESERVE_BYTES, next_bytes)
    if free < needed:
        raise DiskFullError(
            f"a checkpoint needs {_mib(needed)} free in {folder} and there are {_mib(free)}; free"
            f" {_mib(needed - free)}, or point --output-dir to another disk, then start again"
        )
    return free


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def reserve_ballast(run_dir: Path) -> bool:
    """Make the ballast unless it is there: 64 MiB, or a fiftieth of what is free if that is less. True when it stands.

    A disk without room for it is no error: training may still fit.
    """
    path = run_dir / BALLAST_NAME
    try:
        if path.exists():
            return True
        size = min(BALLAST_BYTES, shutil.disk_usage(run_dir).free // 50)
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            else:
                for start in range(0, size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - start)))
        return True
    except OSError:
        release_ballast(run_dir)
        return False


def release_ballast(run_dir: Path) -> bool:
    """Give the room of the ballast back; True when there was one."""
    try:
        (run_dir / BALLAST_NAME).unlink()
        return True
    except OSError:
        return False
