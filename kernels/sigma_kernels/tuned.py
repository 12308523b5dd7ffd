"""The launches that `sigma tune` measured on this machine. They win over the tables in the code.

A JSON file of settings by op and key (architecture, shape class, dtype). It belongs to one version of the kernels: with
any other it is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

VARIABLE = "SIGMA_TUNED_TABLE"
"""Names the file in the environment."""

Settings = dict[str, Any]  # setting -> a JSON value
Made = TypeVar("Made")

_rows: dict[tuple[str, str], Settings] = {}
_made: dict[tuple[str, str], Any] = {}  # what an op made of its row, until the rows change
_checks: dict[str, Callable[[Settings], None]] = {}


class TunedTableError(ValueError):
    """A table that cannot be used; the message says why."""


def check_rows(op: str, check: Callable[[Settings], None]) -> None:
    """From here on `load` refuses a table in which `check` raises ValueError for a row of `op`."""
    _checks[op] = check


def power_of_two(value: Any, least: int, most: int) -> bool:
    """Whether a JSON value is a power of two within the bounds."""
    return type(value) is int and least <= value <= most and value & (value - 1) == 0


def settings(op: str, key: str) -> Settings | None:
    """What was measured for an op and a key on this machine; None where nothing was."""
    return _rows.get((op, key))


def in_force() -> dict[str, Settings]:
    """All that was measured on this machine, by op and key."""
    return {f"{op} {key}": dict(row) for (op, key), row in _rows.items()}


def launch(op: str, key: str, make: Callable[[Settings], Made]) -> Made | None:
    """`make` of the settings for an op and a key, made once; None where nothing was measured."""
    if (op, key) not in _rows:
        return None
    if (op, key) not in _made:
        _made[op, key] = make(_rows[op, key])
    return _made[op, key]


@contextmanager
def using(op: str, key: str, chosen: Mapping[str, Any]) -> Iterator[None]:
    """Launch with `chosen` inside the block."""
    before = dict(_rows)
    _replace({**before, (op, key): dict(chosen)})
    try:
        yield
    finally:
        _replace(before)


def _replace(rows: Mapping[tuple[str, str], Settings]) -> None:
    """Put these rows in force and no other."""
    _made.clear()
    _rows.clear()
    _rows.update(rows)


def load(path: Path) -> int:
    """Take over a table in place of the one before; returns the number of its rows, 0 when there is no file.

    Raises TunedTableError for a damaged file, one of other kernels, or a row that no launch can have; then no row is in
    force.
    """
    _replace({})
    try:
        if not path.is_file():
            return 0
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = {(op, key): dict(row) for op, keys in table["rows"].items() for key, row in keys.items()}
        kernels = table["kernels"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TunedTableError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    if kernels != fingerprint():
        raise TunedTableError(f"{path} was measured with other kernels")
    for (op, key), row in rows.items():
        try:
            if op in _checks:
                _checks[op](row)
        except ValueError as error:
            raise TunedTableError(f"{path} is damaged ({op} {key}: {error})") from error
    _replace(rows)
    return len(rows)


def save(path: Path, found: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    """Put rows into the table at `path`; rows of other keys stay when they belong to these kernels."""
    with suppress(TunedTableError):  # a table that cannot be used is replaced
        load(path)
    _replace({**_rows, **{at: dict(row) for at, row in found.items()}})
    rows: dict[str, dict[str, Settings]] = {}
    for (op, key), row in sorted(_rows.items()):
        rows.setdefault(op, {})[key] = row
    text = json.dumps({"kernels": fingerprint(), "rows": rows}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may save too
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


@cache
def fingerprint() -> str:
    """Hash of the sources of all kernels."""
    folder, digest = Path(__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
