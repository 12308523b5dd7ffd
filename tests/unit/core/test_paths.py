"""Portable first: the executable's own folder when it may be written to, else the platform's places."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from sigma.core import paths
from sigma.core.version import VERSION

ROOT = Path(__file__).parents[3]


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "Sigma é"
    folder.mkdir()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(folder / "sigma"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return folder


def test_from_source_data_starts_in_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert paths.program_dir() is None
    assert paths.data_dir() == Path.cwd()


def test_frozen_data_lies_beside_the_executable(frozen: Path):
    assert paths.data_dir() == frozen
    assert list(frozen.iterdir()) == [], "the probe leaves nothing behind"


def test_frozen_in_a_read_only_folder_uses_the_users_data_folder(frozen: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paths, "is_writable", lambda folder: False)
    assert paths.data_dir() != frozen
    assert paths.data_dir().name.lower() == "sigma"


@pytest.mark.parametrize("parent", ["Program Files (x86)", "OneDrive - Firm", "Dropbox"])
def test_system_and_synced_folders_are_not_portable(tmp_path: Path, parent: str):
    folder = tmp_path / parent / "Sigma"
    folder.mkdir(parents=True)
    assert paths.is_writable(folder)
    assert not paths.is_portable(folder)


def test_writable_is_false_for_a_folder_that_does_not_exist(tmp_path: Path):
    assert not paths.is_writable(tmp_path / "none")


def test_caches_are_kept_per_version_and_follow_the_platform_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.cache_dir().name == VERSION
    if sys.platform == "linux":
        assert paths.cache_dir() == tmp_path / "sigma" / VERSION


def test_builds_of_one_version_have_caches_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    assert paths.build_id() == VERSION, "a folder that no build finished"
    names = []
    for torch in ("2.13.0", "2.15.0"):
        (tmp_path / paths.BUILD_FACTS).write_text(f'{{"torch": "{torch}"}}')
        names += [paths.cache_dir().name, paths.cache_dir().name]
    assert names[0] == names[1] != names[2] == names[3]
    assert all(re.fullmatch(rf"{re.escape(VERSION)}-[0-9a-f]{{12}}", name) for name in names)


def test_version_is_the_one_of_the_project_file():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
