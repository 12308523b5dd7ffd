"""How the executable gets Triton's C module: ready-made from the bundle, else by the bundled TinyCC, else by the user's
compiler. Every choice, and why a better one was not possible, is said on stderr.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sigma.core.errors import SigmaError
from sigma_app.doctor import foreign_environment


@dataclass(frozen=True)
class Order:
    """A C file that is to become a module."""

    name: str
    source: Path
    folder: Path
    """Where the module may be written."""
    library_dirs: Sequence[str]
    include_dirs: Sequence[str]
    libraries: Sequence[str]

    @property
    def target(self) -> Path:
        """The file to make."""
        return self.folder / f"{self.name}{sysconfig.get_config_var('EXT_SUFFIX')}"

    def linked(self) -> list[str]:
        """The libraries as a compiler wants them: on Linux their files. Raises LookupError."""
        if os.name == "nt":
            names = [*self.libraries, f"python{sys.version_info.major}{sys.version_info.minor}"]
            return [*(f"-L{path}" for path in self.library_dirs), *(f"-l{name}" for name in names)]
        return [find_library(library, self.library_dirs) for library in self.libraries]

    def headers(self) -> list[str]:
        """The folders of header files, Python's too (Debian's names others relative to the folder above)."""
        scheme = "nt" if os.name == "nt" else "posix_prefix"
        python = sysconfig.get_paths(scheme=scheme)["include"]
        return [*self.include_dirs, str(self.folder), python, os.path.dirname(python)]


class NoCompilerError(SigmaError):
    """Nothing on this machine can make Triton's C module."""

    exit_code = 3


def native_folder() -> Path:
    """The bundle's folder of compiled C and of TinyCC."""
    return Path(getattr(sys, "_MEIPASS", os.devnull)) / "native"


def build_extension(
    name: str,
    source: str,
    folder: str,
    library_dirs: Sequence[str],
    include_dirs: Sequence[str],
    libraries: Sequence[str],
) -> str:
    """What `triton.knobs.build.impl` must be: the path of a module `name` made from the C file `source`.

    Raises NoCompilerError when none of the three ways works; the message has the reason of each.
    """
    order = Order(name, Path(source), Path(folder), library_dirs, include_dirs, libraries)
    reasons: list[str] = []
    for attempt in (ready_made, with_tinycc, with_users_compiler):
        try:
            path, how = attempt(order)
        except (OSError, LookupError, subprocess.SubprocessError) as error:
            reasons.append(f"{attempt.__name__.replace('_', ' ')}: {error}")
            continue
        note = f" ({'; '.join(reasons)})" if reasons else ""
        print(f"triton: {name} {how}{note}", file=sys.stderr, flush=True)
        return str(path)
    raise NoCompilerError(
        f"Triton's {name} cannot be made: {'; '.join(reasons)}. Install gcc, or train with --device cpu"
    )


def ready_made(order: Order) -> tuple[Path, str]:
    """The module that the bundle carries, if it was made from the same source for this Python."""
    facts = manifest()
    if facts["module"] != order.name:
        raise LookupError(f"the bundle has {facts['module']}, not {order.name}")
    if facts["source_sha256"] != hashlib.sha256(order.source.read_text(encoding="utf-8").encode()).hexdigest():
        raise LookupError(f"the bundle's was made from another source (Triton {facts['triton']})")
    if facts["python"] != sysconfig.get_config_var("EXT_SUFFIX"):
        raise LookupError(f"the bundle's is for another Python ({facts['python']})")
    path = native_folder() / facts["file"]
    ctypes.CDLL(str(path))  # an older C library, or no driver: said here, where there is another way
    return path, "ready-made, from the bundle"


def manifest() -> dict[str, str]:
    """What the bundle says about its module. Raises OSError, or LookupError when the file is damaged."""
    path = native_folder() / "manifest.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also bytes that are no UTF-8
        raise LookupError(f"{path.name} is damaged ({error})") from None
    if not isinstance(facts, dict):
        raise LookupError(f"{path.name} is damaged (not an object)")
    return facts


def with_tinycc(order: Order) -> tuple[Path, str]:
    """Compile with the bundled TinyCC; it brings the headers of the C library along."""
    if os.name == "nt":
        tcc = native_folder().parent / "triton" / "runtime" / "tcc" / "tcc.exe"
        flags = ["-O3", "-shared", "-D_Py_USE_GCC_BUILTIN_ATOMICS", "-o", str(order.target)]
        compile_with([str(tcc), str(order.source), *flags, *order.linked(), *(f"-I{path}" for path in order.headers())])
        return order.target, "compiled with the TinyCC of triton-windows"
    tcc = native_folder() / "tcc"
    libc = tcc / "libc" / "usr" / "include"
    headers = [tcc / "include", libc, *sorted(libc.glob("*-linux-gnu")), *order.headers()]
    flags = [
        "-nostdinc",
        "-nostdlib",
        f"-B{tcc}",
        "-shared",
        "-o",
        str(order.target),
        *(f"-I{path}" for path in headers),
    ]
    compile_with([str(tcc / "bin" / "tcc"), *flags, str(order.source), *order.linked(), str(tcc / "libtcc1.a")])
    return order.target, "compiled with the bundled TinyCC"


def with_users_compiler(order: Order) -> tuple[Path, str]:
    """Compile as Triton itself would."""
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if compiler is None:
        raise LookupError("no gcc, cc or clang on PATH, and CC is not set")
    flags = [
        "-O3",
        "-shared",
        "-fPIC",
        "-Wno-psabi",
        "-o",
        str(order.target),
        *(f"-I{path}" for path in order.headers()),
    ]
    compile_with([compiler, *flags, str(order.source), *order.linked()])
    return order.target, f"compiled with {compiler}"


def find_library(name: str, folders: Sequence[str]) -> str:
    """The file of a library such as `libcuda.so.1`. Raises LookupError."""
    found = next((path for folder in folders if (path := Path(folder) / name).exists()), None)
    if found is None:
        raise LookupError(f"{name} is in none of {', '.join(map(str, folders))}")
    return str(found)


def compile_with(command: Sequence[str]) -> None:
    """Run a compiler. Raises OSError or SubprocessError with its last words."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=foreign_environment())
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise subprocess.SubprocessError(f"{Path(command[0]).name}: {words[0]}")
