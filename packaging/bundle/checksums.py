"""Which files there are, how large, and their SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

SUMS = "SHA256SUMS"
ARGS_FILE = "train_sigma_args.txt"


def sha256(path: Path) -> str:
    """Of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path) -> Path:
    """`SHA256SUMS` of a folder, for `sha256sum -c`. The args file is not in it: it is there to be edited."""
    names = sorted(path.relative_to(folder).as_posix() for path in regular_files(folder))
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names if name not in (SUMS, ARGS_FILE)]
    target = folder / SUMS
    target.write_bytes("".join(lines).encode())
    return target


def regular_files(folder: Path) -> Iterable[Path]:
    """Every file below, without links (they point to files that are listed)."""
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def sizes(folder: Path, internal: str) -> dict[str, int]:
    """Bytes by component, the largest first: what lies in the folder, and `internal` part by part."""
    found: dict[str, int] = {}
    for path in regular_files(folder):
        parts = path.relative_to(folder).parts
        name = parts[0] if parts[0] != internal else f"{internal}/{parts[1] if len(parts) > 2 else '*'}"
        found[name] = found.get(name, 0) + path.stat().st_size
    return dict(sorted(found.items(), key=lambda item: -item[1]))
