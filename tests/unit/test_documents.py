"""Documents that name code name code that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = "".join((ROOT / "docs" / name).read_text() for name in ("tests.md", "start-situations.md"))
NAMED_TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TABLES)))
ROWS = re.findall(r"^\| `([^|]*)` \| ", (ROOT / "docs/architecture.md").read_text(), flags=re.MULTILINE)


def paths(row: str) -> list[str]:
    """The first cell of a row of the file table, `a/{b,c}.py`, `d.py` beside it, as paths."""
    found: list[str] = []
    for entry in re.split(r"`, `", row):
        if match := re.fullmatch(r"(.*)\{(.*)\}(.*)", entry):
            head, names, tail = match.groups()
            found += [f"{head}{name}{tail}" for name in names.split(",")]
        else:
            found.append(entry)
    return found


@pytest.mark.parametrize("file, test", NAMED_TESTS, ids=[test for _, test in NAMED_TESTS])
def test_a_test_that_the_table_names_exists(file: str, test: str) -> None:
    assert f"def {test}(" in (ROOT / file).read_text()


def test_the_file_table_names_every_source_file_once() -> None:
    named = [path for row in ROWS for path in paths(row) if path.endswith(".py")]
    folders = ("sigma", "kernels/sigma_kernels", "app")
    there = [
        p.relative_to(ROOT).as_posix() for folder in folders for p in (ROOT / folder).rglob("*.py") if p.stat().st_size
    ]
    empty_shells = {f"kernels/sigma_kernels/{op}/__init__.py" for op in ("rms_norm", "scan")}
    assert sorted(named) == sorted(set(there) - empty_shells)
