"""Guards of the layout: no folder of ours shadows an installed package, no file is too long, no machine is named."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN_FOLDERS = (".ci", "app", "docs", "kernels", "packaging", "sigma", "tests")
GENERIC_FOLDERS = ("app", "kernels", "packaging", "tests")
MOST_LINES = 400
USERS_OWN = {"train_sigma_args.txt"}  # shipped, but edited on the user's machine
LONGER_FILES: dict[str, str] = {}  # path -> why it is still one idea

# Where the project was made or fetched from says nothing to its reader, and is wrong on the reader's machine.
MACHINE = re.compile(
    r"(?<![\w.])/(?:root|work)/|pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org|download\.pytorch\.org"
)


def project_files() -> Iterator[Path]:
    """Every file of the project, without what tools leave behind."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.name not in USERS_OWN)
    for folder in OWN_FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def machine_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if MACHINE.search(line)]


def comes_from_outside(origin: str | None) -> bool:
    """Whether a module was installed (.venv counts as outside) and not picked up from the working tree."""
    if origin is None:
        return False
    path = Path(origin).resolve()
    return not path.is_relative_to(ROOT) or path.is_relative_to(ROOT / ".venv")


def test_generic_folders_are_never_packages():
    """They share names with installed packages; an __init__.py would shadow those."""
    assert [folder for folder in GENERIC_FOLDERS if (ROOT / folder / "__init__.py").exists()] == []


def test_the_installed_packaging_is_found_before_our_folder():
    spec = importlib.util.find_spec("packaging")
    assert spec is not None
    assert comes_from_outside(spec.origin)


def test_no_module_is_found_in_our_kernels_folder():
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or comes_from_outside(spec.origin)


def test_every_source_folder_of_a_package_is_a_package():
    """A folder without __init__.py imports as a namespace and silently misses from the wheel's import checks."""
    missing = [
        folder
        for package in ("sigma", "kernels/sigma_kernels", "app/sigma_app")
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}
        if not (folder / "__init__.py").exists()
    ]
    assert missing == []


def test_no_file_is_longer_than_its_budget():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in project_files()
        if path.suffix == ".py"
    }
    assert {name: n for name, n in lengths.items() if n > MOST_LINES and name not in LONGER_FILES} == {}
    assert [name for name in LONGER_FILES if lengths.get(name, 0) <= MOST_LINES] == [], "the exception is not needed"


def test_no_file_names_a_machine_or_a_package_host():
    found = {}
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # compressed corpus
        if lines := machine_lines(text):
            found[path.relative_to(ROOT).as_posix()] = lines
    assert found == {}


@pytest.mark.parametrize(
    "line, bad",
    [
        ("cache = '" + "/ro" + "ot/.cache'", True),
        ("see https://py" + "pi.org/project/x", True),
        ("a/work/b is a relative path", False),
        ("from sigma.core import files", False),
    ],
    ids=["home of a machine", "package host", "relative path", "code"],
)
def test_the_machine_pattern_tells_them_apart(line, bad):
    assert bool(machine_lines(line)) is bad
