"""A process that a library starts from the executable: a fault below Python leaves its stack in a file of its own.

Its Python exceptions reach the process that started it, or its own log (`sigma.train.wandb_relay`).
"""

from __future__ import annotations

import faulthandler
import os
from multiprocessing import util
from pathlib import Path

from sigma_app.interpreter import DEPTH_VARIABLE


def is_side_process() -> bool:
    """Whether another process of this program started this one."""
    return DEPTH_VARIABLE in os.environ


def watch_faults() -> Path | None:
    """Write native crashes to a file beside the logs; None where no file can be written (then to stderr).

    The file goes with the process when it is empty, also with a child of multiprocessing, which skips atexit.
    """
    from sigma_app.logfile import FAULTS_SUFFIX, log_dir, log_name

    path = (log_dir() / log_name()).with_suffix(FAULTS_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError:
        faulthandler.enable()
        return None
    faulthandler.enable(file)
    util.Finalize(None, _remove_if_empty, args=(path,), exitpriority=0)
    return path


def _remove_if_empty(path: Path) -> None:
    faulthandler.disable()
    if path.exists() and path.stat().st_size == 0:
        path.unlink()
