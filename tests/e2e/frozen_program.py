"""The executable without its build: a folder with `sigma` in it, whose process believes to be frozen.

Where the program looks, writes and what it says does not depend on PyInstaller; the built one has `--selftest`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY

FOREVER = ("--steps", "100000")
FROZEN = """
import os, sys
sys.frozen, sys.executable, sys.argv = True, {executable!r}, [{started_as!r}]
os.environ.update({environment!r})
os.environ.pop("SIGMA_LAUNCH_DEPTH", None)
os.chdir({cwd!r})
"""
SCRIPT = """\
#!{python}
import sys
sys.frozen, sys.executable = True, {executable!r}
from sigma_app.__main__ import start
start()
"""


class Frozen:
    """The program in `folder`; `args` None leaves its args file away."""

    def __init__(self, program, folder, args=TINY):
        folder.mkdir(parents=True, exist_ok=True)
        self.program, self.folder, self.executable = program, folder, folder / "sigma"
        self.executable.write_text(SCRIPT.format(python=sys.executable, executable=str(self.executable)))
        self.executable.chmod(0o755)
        if args is not None:
            self.args_file.write_text(args)

    @property
    def args_file(self):
        return self.folder / "train_sigma_args.txt"

    def start(self, *argv, started_as=None, cwd="/", patch="", **environment):
        """A forked start; `started_as` is the path that was typed, `environment` is added to the usual one."""
        started_as = str(started_as or self.executable)
        frozen = FROZEN.format(
            executable=str(self.executable), started_as=started_as, cwd=str(cwd), environment=environment
        )
        return self.program.start(*argv, patch=frozen + patch)


def tiny_flags(*more):
    """The tiny model as a command line, for starts without an args file."""
    return (*TINY.split(), *FOREVER, *more)


def reach_first_step(child):
    """Wait for the first step, then stop as Ctrl+C does; returns what was printed."""
    child.wait_for(lambda: "step 1/" in child.output())
    child.send(2)
    assert child.wait() == 130, child.output()[-3000:]
    return child.output()


@contextlib.contextmanager
def mounted(folder, size="4m"):
    """A small disk at `folder`, where the machine lets us mount; yields a function that makes it read-only."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if sys.platform != "linux" or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a disk here")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    finally:
        os.chdir("/")
        subprocess.run(["umount", str(folder)], check=True)


def single(folder: Path, pattern: str) -> Path:
    """The one file of that name."""
    (found,) = folder.glob(pattern)
    return found
