"""What happens before torch is imported: the args file, the log file, the caches, the native fault handler."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import MutableMapping
from pathlib import Path

from sigma.config.explain import ARGS_FILE_NAME, args_template
from sigma.core import paths

_FIXED_ENVIRONMENT = {
    "TRITON_BACKENDS_IN_TREE": "1",  # the frozen program has no package metadata to find them by
    "TOKENIZERS_PARALLELISM": "false",  # its threads and a fork do not go together
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_CACHE_FOLDERS = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "CUDA_CACHE_PATH": "cuda",
    "HF_HOME": "huggingface",
    "MPLCONFIGDIR": "matplotlib",
}
_GENERATED_PACKAGES = {"UNSLOTH_COMPILE_LOCATION": "unsloth_compiled_cache", "HF_MODULES_CACHE": "huggingface_modules"}


def args_file_folders() -> list[Path]:
    """Where the args file is looked for: beside the AppImage, the link, the executable; from source here."""
    if not paths.is_frozen():
        return [Path.cwd()]
    started_as = sys.argv[0] if os.path.dirname(sys.argv[0]) else shutil.which(sys.argv[0]) or ""
    folders = [paths.appimage_dir()]
    if started_as:
        folders.append(Path(os.path.abspath(started_as)).parent)  # the link's folder, not its target's
    folders.append(Path(os.path.abspath(sys.executable)).parent)
    return list(dict.fromkeys(folder for folder in folders if folder is not None))


def find_args_file() -> Path | None:
    """The first existing args file."""
    found = (folder / ARGS_FILE_NAME for folder in args_file_folders())
    return next((path for path in found if os.path.lexists(path)), None)


def write_args_template() -> tuple[Path | None, str]:
    """Put a commented args file where it is looked for first; (its path or None, a line that says what happened)."""
    path = args_file_folders()[0] / ARGS_FILE_NAME
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(args_template())
    except OSError as error:
        return (
            None,
            f"no {ARGS_FILE_NAME}, and {path.parent} cannot be written to ({error.strerror}): using the defaults",
        )
    return path, f"no {ARGS_FILE_NAME} was there: wrote a commented one to {path}; using the defaults"


def prepare_environment(environment: MutableMapping[str, str]) -> list[str]:
    """Set what libraries read at import, unless the user set it. Returns lines about what could not be done.

    Caches are in one folder per version of the program. The folder of modules that libraries generate and import is on
    `sys.path` (last, so that it can hide nothing) and its packages are importable; it is never the working directory.
    """
    for name, value in _FIXED_ENVIRONMENT.items():
        environment.setdefault(name, value)
    cache = paths.cache_dir()
    try:
        for name, folder in _CACHE_FOLDERS.items():
            if name not in environment:
                (cache / folder).mkdir(parents=True, exist_ok=True)
                environment[name] = str(cache / folder)
        modules = cache / "modules"
        for name, package in _GENERATED_PACKAGES.items():
            if name not in environment:
                (modules / package).mkdir(parents=True, exist_ok=True)
                (modules / package / "__init__.py").touch()
                environment[name] = str(modules / package)
    except OSError as error:
        return [f"caches cannot be kept in {cache} ({error.strerror}); every start compiles again"]
    if str(modules) not in sys.path:
        sys.path.append(str(modules))
    return []


def hold_console_window() -> None:
    """On Windows, a double-clicked program owns its console window: keep it open until Enter is pressed."""
    if sys.platform != "win32" or not paths.is_frozen():
        return
    import ctypes

    owners = ctypes.windll.kernel32.GetConsoleProcessList((ctypes.c_uint * 2)(), 2)
    if owners == 1 and sys.stdin is not None and sys.stdin.isatty():
        input("Press Enter to close this window.")
