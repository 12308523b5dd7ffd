"""Where the args file is looked for, and what the environment looks like when torch is imported."""

import importlib
import os
import sys
from pathlib import Path

import pytest

from sigma.config.explain import ARGS_FILE_NAME
from sigma.core import paths
from sigma.core.version import VERSION
from sigma_app import bootstrap


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The frozen program in its folder, started through a link elsewhere, with an unrelated working directory."""
    folder, links = tmp_path / "Sigma", tmp_path / "links"
    for path in (folder, links):
        path.mkdir()
    (folder / "sigma").write_text("")
    (folder / "sigma").chmod(0o755)
    (links / "sigma").symlink_to(folder / "sigma")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", str(folder / "sigma"))
    monkeypatch.setattr(sys, "argv", [str(links / "sigma")])
    return folder


def test_from_source_the_args_file_is_in_the_working_directory(home: Path):
    assert bootstrap.find_args_file() is None
    (home / ARGS_FILE_NAME).write_text("")
    assert bootstrap.find_args_file() == home / ARGS_FILE_NAME


def test_frozen_looks_beside_the_link_then_beside_the_executable_never_here(program: Path, home: Path):
    (home / ARGS_FILE_NAME).write_text("")
    assert bootstrap.find_args_file() is None
    (program / ARGS_FILE_NAME).write_text("")
    assert bootstrap.find_args_file() == program / ARGS_FILE_NAME
    (program.parent / "links" / ARGS_FILE_NAME).write_text("")
    assert bootstrap.find_args_file() == program.parent / "links" / ARGS_FILE_NAME


def test_frozen_found_through_the_search_path(program: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["sigma"])
    os.environ["PATH"] = str(program.parent / "links")
    assert bootstrap.args_file_folders() == [program.parent / "links", program]
    os.environ["PATH"] = ""
    assert bootstrap.args_file_folders() == [program]


def test_appimage_looks_beside_the_image_first(program: Path, tmp_path: Path):
    os.environ.update(APPIMAGE=str(tmp_path / "apps" / "Sigma.AppImage"), APPDIR=str(program))
    assert bootstrap.args_file_folders()[0] == tmp_path / "apps"
    assert paths.program_dir() == tmp_path / "apps"


def test_variables_of_a_foreign_appimage_do_not_count(program: Path, tmp_path: Path):
    os.environ.update(APPIMAGE=str(tmp_path / "terminal.AppImage"), APPDIR="/tmp/.mount_terminal")
    assert bootstrap.args_file_folders()[0] == program.parent / "links"
    assert paths.program_dir() == program


def test_broken_link_to_an_args_file_is_not_taken_for_missing(home: Path):
    (home / ARGS_FILE_NAME).symlink_to(home / "gone")
    assert bootstrap.find_args_file() == home / ARGS_FILE_NAME


def test_template_is_not_written_over_anything_and_a_closed_folder_is_said(home: Path, monkeypatch: pytest.MonkeyPatch):
    path, message = bootstrap.write_args_template()
    assert path == home / ARGS_FILE_NAME
    assert "wrote a commented one" in message
    path.write_text("mine")
    assert bootstrap.write_args_template()[0] is None
    assert path.read_text() == "mine"
    monkeypatch.setattr(bootstrap, "args_file_folders", lambda: [home / "none"])
    path, message = bootstrap.write_args_template()
    assert path is None
    assert f"{home / 'none'} cannot be written to (No such file or directory)" in message


def test_users_own_variables_are_kept_and_caches_are_keyed_by_version():
    environment = {"HF_HOME": "/mine", "TOKENIZERS_PARALLELISM": "true"}
    assert bootstrap.prepare_environment(environment) == []
    assert environment["HF_HOME"] == "/mine"
    assert environment["TOKENIZERS_PARALLELISM"] == "true"
    assert environment["TRITON_BACKENDS_IN_TREE"] == "1"
    names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "CUDA_CACHE_PATH", "MPLCONFIGDIR")
    for name in names:
        folder = Path(environment[name])
        assert folder.is_dir()
        assert folder.parent == paths.cache_dir()
        assert folder.parent.name == VERSION


def test_generated_modules_are_imported_from_the_cache_folder(home: Path):
    environment: dict[str, str] = {}
    before = list(sys.path)
    bootstrap.prepare_environment(environment)
    bootstrap.prepare_environment({})
    folder = Path(environment["UNSLOTH_COMPILE_LOCATION"])
    assert sys.path == [*before, str(folder.parent)], "once, and behind everything else"
    (folder / "made.py").write_text("VALUE = 5")
    module = importlib.import_module(f"{folder.name}.made")
    assert module.VALUE == 5
    assert list(home.iterdir()) == []
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_cache_folder_that_cannot_be_written_is_said_once(tmp_path: Path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    environment: dict[str, str] = {}
    (message,) = bootstrap.prepare_environment(environment)
    assert "caches cannot be kept in" in message
    assert "TRITON_CACHE_DIR" not in environment
