"""results.csv: its columns, and how rows are appended."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("results.csv")
# New columns go to the end; older rows are empty there.
COLUMNS = [
    "date", "commit", "device", "torch", "triton", "op", "shape", "dtype", "provider", "direction", "ms", "gb_per_s",
    "percent_of_copy", "p10_ms", "p90_ms", "turns", "percent_of_floor", "first_call_s", "cache", "peak_mib", "error",
]  # fmt: skip


def read(path: Path = RESULTS) -> list[dict[str, str]]:
    """All rows, oldest first; a column that a row does not have is empty."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, restval=""))


def widen(path: Path) -> None:
    """Give an older table the columns that came since; its rows stay as they are.

    Raises:
        ValueError: it has a column that is not known here, which would be lost.
    """
    rows = read(path)
    with path.open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file), [])
    if header == COLUMNS:
        return
    if unknown := [name for name in header if name not in COLUMNS]:
        raise ValueError(f"{path}: column {unknown[0]} is not one of this version; measure with the version it is from")
    path.unlink()
    _write(rows, path)


def append(rows: Sequence[dict[str, str]], path: Path = RESULTS) -> None:
    """Add rows to the table; a new file gets its header, an older one its missing columns."""
    if path.exists():
        widen(path)
    _write(rows, path)


def _write(rows: Sequence[dict[str, str]], path: Path) -> None:
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
