"""Where compiled kernels and other things that can be made again are kept, on every machine that can run at all."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from sigma.core import paths
from sigma_kernels.triton_cache import spare_triton
from sigma_kernels.tuned import VARIABLE as TUNED_TABLE

_CACHE_FOLDERS = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "CUDA_CACHE_PATH": "cuda",
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
}
_GENERATED_PACKAGES = {"UNSLOTH_COMPILE_LOCATION": "unsloth_compiled_cache", "HF_MODULES_CACHE": "huggingface_modules"}


def prepare_caches(environment: MutableMapping[str, str]) -> list[str]:
    """Name a folder for every cache in `environment`, unless the user named one; returns what is to be said about it.

    One folder per version of the program: the user's cache folder, else beside the executable, else a temporary one
    that goes with the process. The folder of modules that libraries generate and import is on `sys.path` (last, so that
    it can hide nothing) and its packages are importable; it is never the working directory.
    """
    root, notes = cache_root()
    for name, folder in _CACHE_FOLDERS.items():
        if name not in environment:
            (root / folder).mkdir(parents=True, exist_ok=True)
            environment[name] = str(root / folder)
    environment.setdefault(TUNED_TABLE, str(root / "tuned.json"))
    modules = root / "modules"
    for name, package in _GENERATED_PACKAGES.items():
        if name not in environment:
            (modules / package).mkdir(parents=True, exist_ok=True)
            (modules / package / "__init__.py").touch()
            environment[name] = str(modules / package)
    if str(modules) not in sys.path:
        sys.path.append(str(modules))
    spare_triton(environment)
    return notes


def cache_root() -> tuple[Path, list[str]]:
    """The first folder that takes a file, and a line when it is not the usual one."""
    usual, program = paths.cache_dir(), paths.program_dir()
    reason = _why_not(usual)
    if reason is None:
        return usual, []
    said = f"caches cannot be kept in {usual} ({reason})"
    if program is not None and paths.is_portable(program):
        beside = program / "cache" / usual.name
        if _why_not(beside) is None:
            return beside, [f"{said}; they are in {beside}"]
    temporary = Path(tempfile.mkdtemp(prefix="sigma-cache-"))  # private: what lies in it is executed
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary, [f"{said}; every start compiles again"]


def _why_not(folder: Path) -> str | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None if paths.is_writable(folder) else "no permission to write"
