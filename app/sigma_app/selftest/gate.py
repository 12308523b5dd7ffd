"""What the gates share: their type, how one says that it does not apply here, and children of the program."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sigma.core import paths

CHILD_LIMIT_S = 300


class NotHereError(Exception):
    """The gate says nothing on this machine or in this kind of program; the message says why."""


class GateError(Exception):
    """The gate is shut; the message says what was found."""


@dataclass(frozen=True)
class Gate:
    """One line of the table. `check` returns what it found; it raises NotHereError, or anything else when it fails."""

    name: str
    check: Callable[[], str]


def expect(truth: Any, found: str) -> None:
    """Raise GateError with `found` unless `truth`."""
    if not truth:
        raise GateError(found)


def only_frozen() -> None:
    """Raise NotHereError when the program runs from source."""
    if not paths.is_frozen():
        raise NotHereError("only the executable has this")


def child(argv: Sequence[str], *, program: str = sys.executable, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program (from source: Python) with these arguments; its output as text, whatever its exit code."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        [program, *argv], env=environment, capture_output=True, encoding="utf-8", timeout=CHILD_LIMIT_S, cwd=_outside()
    )


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a child that ended well. Raises GateError with its last words otherwise."""
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        words = [line for line in lines if not line.startswith("[PYI-")] or ["no output"]  # the loader's own remark
        raise GateError(f"ended with {done.returncode}: {words[-1]}")
    return done.stdout.strip()


def own_folders(folder: Path) -> dict[str, str]:
    """Variables that keep a child's caches, logs and data in `folder`."""
    kinds = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "STATE", "DATA", "CONFIG")}
    return {**kinds, "TRITON_CACHE_DIR": str(folder / "triton"), "WIN_PD_OVERRIDE_LOCAL_APPDATA": str(folder / "local")}


def bundle_folder() -> Path:
    """Where the libraries of the executable are."""
    return Path(getattr(sys, "_MEIPASS", os.devnull))


def module_source(module: ModuleType) -> Path:
    """The `.py` file that a module ran from. Raises GateError when it is not there."""
    path = Path(module.__file__ or os.devnull)
    expect(path.suffix == ".py" and path.is_file(), f"{module.__name__} has no source file ({path})")
    return path


def _outside() -> str:
    """A working directory from which nothing of the program can be imported by chance."""
    return tempfile.gettempdir()
