"""The finished build takes the place of the one before, in two renames; what a person put there moves along.

Until then nothing of the previous build has been touched, so a build that fails leaves it as it was.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bundle.checksums import ARGS_FILE, sha256
from bundle.errors import BuildError

PROGRAM, FACTS = "sigma", "_internal/build.json"
MADE = (PROGRAM, "archives", "build_report.json")
"""What a build makes in `dist`; anything else there belongs to somebody."""
NEW_ARGS_FILE = "train_sigma_args.new.txt"


def publish(staging: Path, dist: Path, previous: Path) -> None:
    """Make `staging` (a finished `dist`) the new `dist`; `previous` is where the old one waits meanwhile.

    Raises:
        BuildError: a folder cannot be moved, for example because the program runs; the old build is where it was.
    """
    recover(dist, previous)
    if dist.exists():
        move(dist, previous)
    try:
        move(staging, dist)
    except BuildError:
        if previous.exists():
            move(previous, dist)
        raise
    if previous.exists():
        clear(previous, dist)


def recover(dist: Path, previous: Path) -> None:
    """Finish or take back a swap that was interrupted."""
    if not previous.exists():
        return
    if not dist.exists():
        move(previous, dist)
        return
    clear(previous, dist)


def clear(previous: Path, dist: Path) -> None:
    """Remove the old `dist` after everything in it that no build made has moved into the new one."""
    for path in sorted(previous.iterdir()):
        if path.name not in MADE:
            move(path, dist / path.name)
    keep_what_is_not_ours(previous / PROGRAM, dist / PROGRAM)
    shutil.rmtree(previous, ignore_errors=True)
    if previous.exists():
        print(f"note: a program uses {previous}, the build before; it goes with the next build")


def keep_what_is_not_ours(old: Path, new: Path) -> None:
    """Move runs, data, errors and an edited args file from the old program folder into the new one."""
    if not old.is_dir():
        return
    facts = json.loads((old / FACTS).read_text(encoding="utf-8")) if (old / FACTS).is_file() else {}
    for path in sorted(old.iterdir()):
        if path.name == ARGS_FILE and sha256(path) != facts.get("args_file_sha256"):
            (new / ARGS_FILE).replace(new / NEW_ARGS_FILE)
            move(path, new / ARGS_FILE)
        elif path.name not in facts.get("top_level", ()) and not (new / path.name).exists():
            move(path, new / path.name)


def move(source: Path, target: Path) -> None:
    """Rename, or say why not."""
    try:
        source.rename(target)
    except OSError as error:
        raise BuildError(
            f"{source} cannot be moved to {target} ({error.strerror}); close the program if it runs there, build again"
        ) from None
