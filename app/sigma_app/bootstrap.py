"""What happens before torch is imported: the args file, the folders that a person looks into, the environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

from sigma.config.explain import ARGS_FILE_NAME, args_template
from sigma.core import paths
from sigma_app.caches import prepare_caches

ERRORS_DIR, DATA_DIR = "errors", "data"
_DATA_NOTE = """\
Put texts of your own here and set --data-backend files: txt, md, jsonl (also .gz and .zst) and parquet files, in
folders of any depth. Rows of jsonl and parquet need a field `text`. This file is not read.
"""
_FIXED_ENVIRONMENT = {
    "TRITON_BACKENDS_IN_TREE": "1",  # the frozen program has no package metadata to find them by
    "TOKENIZERS_PARALLELISM": "false",  # its threads and a fork do not go together
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


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


def program_folder() -> Path:
    """The folder that a person takes for the program's: with the AppImage, the executable; from source this one."""
    return paths.program_dir() or Path.cwd()


def find_args_file() -> Path | None:
    """The first existing args file."""
    found = (folder / ARGS_FILE_NAME for folder in args_file_folders())
    return next((path for path in found if os.path.lexists(path)), None)


def write_args_template() -> tuple[Path | None, list[str]]:
    """Put a commented args file beside the program; (its path or None, lines that say what happened).

    Where that folder cannot be written to, the lines show the file instead.
    """
    folder = program_folder()
    path = folder / ARGS_FILE_NAME
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(args_template())
    except OSError as error:
        head = f"no {ARGS_FILE_NAME}, and {folder} cannot be written to ({error.strerror}); it would hold:"
        tail = "using the defaults; to change something, save these lines elsewhere and start with @FILE"
        return None, [head, args_template(), tail]
    return path, [f"no {ARGS_FILE_NAME} was there: wrote a commented one to {path}; using the defaults"]


def make_known_folders() -> list[str]:
    """Create `data/` and `errors/` of the frozen program; returns a line when they are not beside it.

    Where that folder cannot be written to they are in the user's data folder. From source there are none: the working
    directory is not ours to fill.
    """
    home = paths.data_dir()
    if not paths.is_frozen():
        return []
    try:
        (home / ERRORS_DIR).mkdir(parents=True, exist_ok=True)
        (home / DATA_DIR).mkdir(exist_ok=True)
        note = home / DATA_DIR / "README.txt"
        if not note.exists():
            note.write_text(_DATA_NOTE, encoding="utf-8")
    except OSError as error:
        return [f"no folders {DATA_DIR} and {ERRORS_DIR}: {home} cannot be written to ({error.strerror})"]
    if home == program_folder():
        return []
    return [f"{program_folder()} is not for writing: {DATA_DIR}, {ERRORS_DIR} and runs are in {home}"]


def known_errors_dir() -> Path | None:
    """The `errors/` folder of the frozen program, if there is one."""
    folder = paths.data_dir() / ERRORS_DIR
    return folder if paths.is_frozen() and folder.is_dir() else None


def copy_to_known_folder(report: Path) -> None:
    """A copy where the user of the executable looks; the report itself is written, so a failure here costs nothing."""
    folder = known_errors_dir()
    if folder is not None and folder != report.parent:
        with suppress(OSError):
            shutil.copy2(report, folder)


def prepare_environment(environment: MutableMapping[str, str]) -> list[str]:
    """Set what libraries read at import, unless the user set it. Returns lines about what could not be done."""
    for name, value in _FIXED_ENVIRONMENT.items():
        environment.setdefault(name, value)
    return prepare_caches(environment)
