"""Which Python builds, with which torch. The bundle is made of the packages that this Python has."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from bundle.errors import MissingError

# Any fixed time will do for a tree without a history.
FALLBACK_EPOCH = 1_767_225_600
ON_WINDOWS = os.name == "nt"


def check(*, cpu_allowed: bool, has_driver: bool) -> str:
    """The name of what is built: `linux-x86_64-cpu`, `windows-amd64-cu130`.

    A torch for the CPU is refused where it is a mistake: on Windows, where it is what pip installs when nobody asked
    for CUDA, and on a machine with an NVIDIA driver.

    Raises:
        MissingError: a package is missing, or torch cannot use a GPU and `cpu_allowed` is false.
    """
    for name in ("torch", "pyinstaller"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise MissingError(f"{name} is not installed in {sys.prefix}; pip install '.[build]'") from None
    cuda = torch_cuda()
    if cuda is None and not cpu_allowed and (ON_WINDOWS or has_driver):
        raise MissingError(
            "this torch was built for the CPU, and a bundle of it trains on no GPU; install the CUDA build of torch"
            " (README), or ask for a CPU bundle with --cpu"
        )
    if cuda is not None and cpu_allowed:
        raise MissingError(
            f"--cpu was given, but this torch brings CUDA {cuda}; install its CPU build (README), or drop --cpu"
        )
    flavour = "cpu" if cuda is None else f"cu{cuda.replace('.', '')}"
    return f"{platform.system()}-{platform.machine()}-{flavour}".lower()


def torch_cuda() -> str | None:
    """`13.0`, or None for a torch that was built for the CPU; asked in a process of its own, because torch is large."""
    probe = [sys.executable, "-c", "import torch; print(torch.version.cuda or '')"]
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode != 0:
        raise MissingError(f"torch cannot be imported: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
    return done.stdout.strip() or None


def epoch(root: Path) -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit: the date that every file of the bundle gets."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdecimal():
        return int(given)
    try:
        done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=root, capture_output=True, text=True)
    except OSError:
        return FALLBACK_EPOCH
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else FALLBACK_EPOCH
