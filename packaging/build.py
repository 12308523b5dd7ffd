"""Builds the executable: dist/sigma, its archives, and a report of what is in it.

    python packaging/build.py [--cpu] [--python PYTHON] [--dist FOLDER] [--no-archives]

Without --python it sets up `.venv` like `make test` does, and builds with that. 0: built, tested and in place;
1: the build failed and the previous one is untouched; 2: wrong arguments; 3: the machine lacks something.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import make
from bundle.errors import BuildError

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "exe"
MOST_MIB = {"cpu": 1.35 * 1024, "cuda": 4.4 * 1024}
"""What the folder may weigh."""
MOVED = "moved é here"
"""The selftest runs from a folder of this name, not from the one that the program was built in."""


def main(argv: Sequence[str]) -> int:
    """Set up the Python that builds, and build in a process of it. Returns the exit code."""
    arguments = parse(argv)
    try:
        if arguments.inside:
            return build(arguments)
        if arguments.python is None:
            make.ensure("build")
        python = arguments.python or make.venv_python()
        return subprocess.call([python, __file__, "--inside", *argv])
    except make.SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def parse(argv: Sequence[str]) -> Any:
    """The arguments; argparse ends the process with 2 when they are wrong."""
    parser = argparse.ArgumentParser(prog="build", description="Builds dist/sigma, the executable.")
    parser.add_argument("--cpu", action="store_true", help="a bundle that trains on the CPU only is what I want")
    parser.add_argument("--python", help="build with the packages of this Python, and install nothing")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="where the result goes (default: dist)")
    parser.add_argument("--no-archives", action="store_true", help="the folder only, without the archives of it")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def build(arguments: Any) -> int:
    """Everything from the sources to a tested folder in place."""
    from bundle import environment, product

    flavour = environment.check(cpu_allowed=arguments.cpu, has_driver=make.has_nvidia_driver())
    facts = product.facts(ROOT, flavour, environment.epoch(ROOT))
    with alone_in(WORK):
        make_bundle(arguments, facts)
    return 0


def make_bundle(arguments: Any, facts: dict[str, Any]) -> None:
    """The steps, in the folder that no other build uses now."""
    from bundle import archives, freeze, native, product, publish

    steps, work, staging = Steps(), WORK / "work", WORK / "new"
    for folder in (work, staging):
        empty(folder)
    with steps("C module and TinyCC"):
        native.carry(work / "carried")
    with steps("PyInstaller"):
        frozen = freeze.freeze(ROOT / "packaging" / "sigma.spec", work, facts["epoch"])
    folder = staging / "sigma"
    with steps("strip, precompile, licences, checksums"):
        frozen.rename(folder)
        shutil.copytree(work / "carried", folder / freeze.INTERNAL, dirs_exist_ok=True)
        freeze.finish(folder)
        product.complete(folder, ROOT, facts)
    with steps("selftest"):
        selftest(folder, work / MOVED / "sigma")
    if not arguments.no_archives:
        with steps("archives"):
            archives.write_all(folder, staging / "archives", facts, windows=os.name == "nt")
    table = product.report(folder, staging / "build_report.json", facts, steps.seconds)
    limit = MOST_MIB["cpu" if facts["flavour"].endswith("cpu") else "cuda"]
    if table.total_mib > limit:
        raise BuildError(f"the folder has {table.total_mib:,.0f} MiB, more than {limit:,.0f}; see {table.path}")
    publish.publish(staging, arguments.dist.resolve(), WORK / "previous")
    shutil.rmtree(work, ignore_errors=True)  # the next build removes what is in use now, or says so
    print(f"built {arguments.dist / 'sigma'}: {table.total_mib:,.0f} MiB, {sum(steps.seconds.values()):.0f} s")


@contextmanager
def alone_in(folder: Path):
    """Inside, no other build works in `folder`; the lock ends with the process.

    Raises:
        BuildError: another build is at work there, or nothing can be written there.
    """
    sys.path.append(str(ROOT))
    from sigma.core.lock import RunLock, RunLockedError

    lock = RunLock(folder)
    try:
        lock.acquire()
    except RunLockedError as error:
        raise BuildError(f"another build is at work ({str(error).split(';')[0]}); wait for its end") from None
    except OSError as error:
        raise BuildError(f"{folder} cannot be written to ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


def empty(folder: Path) -> None:
    """Make `folder` an empty one.

    Raises:
        BuildError: something in it is in use (on Windows a running program, an open window).
    """
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise BuildError(
            f"{error.filename or folder} cannot be removed ({error.strerror}); close what uses it, then build again"
        ) from None


class Steps:
    """Says what is done, and notes how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str):
        """One step."""
        print(f"== {name}", flush=True)
        begin = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begin, 1)


def selftest(folder: Path, copy: Path) -> None:
    """Run the gates in a copy (of hard links, where there are any) in a folder of another name, with nothing on PATH.

    Raises:
        BuildError: a gate is shut; its line stands above.
    """
    shutil.copytree(folder, copy, symlinks=True, copy_function=link_or_copy)
    program = copy / ("sigma.exe" if os.name == "nt" else "sigma")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    code = subprocess.call([program, "--selftest"], env={**environment, "PATH": ""}, cwd=copy.anchor)
    if code != 0:
        raise BuildError(f"the selftest of {folder} ended with {code}")
    shutil.rmtree(copy.parent)


def link_or_copy(source: str, target: str) -> None:
    """A second name for the same file, or a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
