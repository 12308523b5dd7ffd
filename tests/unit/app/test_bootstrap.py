"""Where the args file is looked for, and which folders the program makes beside itself."""

import os
import sys
from pathlib import Path

import pytest

from sigma.config.explain import ARGS_FILE_NAME, args_template
from sigma.core import paths
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
    path, lines = bootstrap.write_args_template()
    assert path == home / ARGS_FILE_NAME
    assert "wrote a commented one" in lines[0]
    path.write_text("mine")
    assert bootstrap.write_args_template()[0] is None
    assert path.read_text() == "mine"
    monkeypatch.setattr(bootstrap, "program_folder", lambda: home / "none")
    path, lines = bootstrap.write_args_template()
    assert path is None
    assert f"{home / 'none'} cannot be written to (No such file or directory)" in lines[0]
    assert lines[1] == args_template(), "shown instead"


def test_template_goes_beside_the_executable_not_beside_a_link(program: Path):
    assert bootstrap.write_args_template()[0] == program / ARGS_FILE_NAME
    assert bootstrap.find_args_file() == program / ARGS_FILE_NAME


def test_folders_that_a_person_looks_into_are_beside_the_executable_and_never_here(program: Path, home: Path):
    assert bootstrap.make_known_folders() == []
    assert {path.name for path in program.iterdir()} == {"sigma", "data", "errors"}
    assert bootstrap.known_errors_dir() == program / "errors"
    assert list(home.iterdir()) == []


def test_folders_of_a_read_only_program_are_the_users_and_their_place_is_said(program: Path, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "is_portable", lambda folder: False)
    (line,) = bootstrap.make_known_folders()
    users = tmp_path / "data" / "sigma"
    assert line == f"{program} is not for writing: data, errors and runs are in {users}"
    assert bootstrap.known_errors_dir() == users / "errors"
    assert [path.name for path in program.iterdir()] == ["sigma"]


def test_from_source_no_folder_is_made(home: Path):
    assert bootstrap.make_known_folders() == []
    assert bootstrap.known_errors_dir() is None
    assert list(home.iterdir()) == []
