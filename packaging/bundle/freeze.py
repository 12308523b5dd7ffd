"""Runs PyInstaller on sigma.spec, and turns what it made into the folder that people get."""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

from bundle import plan
from bundle.errors import BuildError, MissingError

INTERNAL = "_internal"
LOG_LINES = 25


def freeze(spec: Path, work: Path, epoch: int) -> Path:
    """PyInstaller's folder `work/dist/sigma`; its output goes to `work/pyinstaller.log`.

    Raises:
        BuildError: PyInstaller failed; the message has the end of its log.
    """
    log = work / "pyinstaller.log"
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--clean", "--log-level", "WARN"]
    command += ["--distpath", str(work / "dist"), "--workpath", str(work / "pyinstaller"), str(spec)]
    fixed = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": str(epoch), "PYINSTALLER_CONFIG_DIR": str(work / "config")}
    with log.open("wb") as output:
        code = subprocess.call(command, stdout=output, stderr=output, env={**os.environ, **fixed}, cwd=work)
    if code != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
        raise BuildError(f"PyInstaller ended with {code}; the end of {log}:\n{tail}")
    return work / "dist" / "sigma"


def finish(folder: Path) -> None:
    """Strip the one library whose symbols are half of it, and precompile what runs from source."""
    strip_libtriton(folder / INTERNAL / "triton" / "_C")
    precompile(folder / INTERNAL)


def strip_libtriton(folder: Path) -> None:
    """Take the symbol table from libtriton (462 -> 180 MB). The names that it exports stay.

    Triton hashes the file into the key of every compiled kernel, so this comes before anything is compiled.
    """
    library = folder / "libtriton.so"
    if not library.exists():  # on Windows a .pyd without a symbol table
        return
    tool = shutil.which("strip")
    if tool is None:
        raise MissingError("no `strip` on this machine; install binutils (it comes with gcc)")
    done = subprocess.run([tool, "--strip-unneeded", str(library)], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"strip failed: {done.stderr.strip()}")


def precompile(internal: Path) -> None:
    """Bytecode beside the sources that are run as they are. It carries the hash of its source: a source patch that is
    unpacked over the folder is noticed, and the same source gives the same file."""
    for package in plan.SOURCE_FIRST:
        folder = internal / package
        done = compileall.compile_dir(
            folder, quiet=1, stripdir=str(internal), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH
        )
        if not done:
            raise BuildError(f"{folder} does not compile; see above")


def set_times(folder: Path, epoch: int) -> None:
    """Give every file and folder the same date and plain permissions."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            os.utime(path, (epoch, epoch))
            runs = path.is_dir() or os.access(path, os.X_OK)
            path.chmod(0o755 if runs else 0o644)
    os.utime(folder, (epoch, epoch))
