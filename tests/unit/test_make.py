"""packaging/make.py installs when it must and never when it need not; the pins are complete; the Makefile agrees."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make.py on an empty project folder; no command is started."""
    spec = importlib.util.spec_from_file_location("make", ROOT / "packaging" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "installed.txt")
    monkeypatch.setattr(module, "CONSTRAINTS", tmp_path / "constraints.txt")
    return module


@pytest.fixture
def commands(make, monkeypatch):
    """Records what would be started; a command that contains `make.fails` ends with 1."""
    started: list[list[str]] = []
    make.fails = "nothing fails"

    def start(argv, **_):
        started.append([str(part) for part in argv])
        code = int(make.fails in started[-1])
        if "venv" in argv and code == 0:
            make.venv_python().parent.mkdir(parents=True)
            make.venv_python().touch()
        return subprocess.CompletedProcess(argv, code)

    monkeypatch.setattr(make.subprocess, "run", start)
    monkeypatch.setattr(make.subprocess, "call", lambda argv, **options: start(argv, **options).returncode)
    return started


def test_the_slow_tests_say_at_the_end_what_the_skipped_ones_need(make, commands, monkeypatch):
    monkeypatch.setattr(make, "ensure", lambda *_: None)
    assert make.main(["test-slow"]) == 0
    assert "-rs" in commands[-1]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "packaging" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(found) == len(requirements), "a name is pinned twice"
    return found


def needed(requirement: Requirement, seen: set[tuple[str, str]]) -> set[str]:
    """Names of all distributions that `requirement` pulls in here, itself included."""
    name = canonicalize_name(requirement.name)
    names = {name}
    for extra in ("", *requirement.extras):
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in importlib.metadata.requires(name) or []:
            child = Requirement(line)
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                names |= needed(child, seen)
    return names


def test_a_first_start_makes_the_environment_and_installs_torch_alone_before_the_project(make, commands):
    make.ensure("dev")
    assert commands[0][1:4] == ["-m", "venv", "--clear"]
    installs = [" ".join(command[2:]) for command in commands if "install" in command]
    constrained = f"pip install --disable-pip-version-check -c {make.CONSTRAINTS} "
    assert [line.removeprefix(constrained) for line in installs] == [
        "torch==2.13.0 hatchling",
        "--no-build-isolation --editable .[dev]",
    ]


def test_a_second_start_runs_nothing(make, commands):
    make.ensure("dev")
    commands.clear()
    make.ensure("dev")
    make.ensure()  # `make run` is served by what `make test` installed
    assert commands == []


def test_a_new_extra_is_added_to_those_present(make, commands):
    make.ensure("wandb")
    make.ensure("dev")
    assert [command[-1] for command in commands if "--editable" in command] == [".[wandb]", ".[dev,wandb]"]
    assert make.installed_extras() == {"dev", "wandb"}


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_again(make, commands, file):
    make.ensure()
    with (make.ROOT / file).open("a") as text:
        text.write("# changed\n")
    assert make.installed_extras() is None


def test_a_moved_folder_is_installed_again(make, commands, tmp_path_factory, monkeypatch):
    make.ensure()
    moved = tmp_path_factory.mktemp("moved")
    (moved / "pyproject.toml").write_bytes((make.ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(make, "ROOT", moved)
    assert make.installed_extras() is None


@pytest.mark.parametrize("keep", [0, 10, 66])
def test_a_torn_stamp_is_not_believed(make, commands, keep):
    make.ensure("dev")
    make.STAMP.write_bytes(make.STAMP.read_bytes()[:keep])
    assert not (make.installed_extras() or set()) >= {"dev"}


def test_a_failed_install_is_not_stamped_and_ends_with_3(make, commands, capsys):
    make.fails = "--editable"
    assert make.main(["test"]) == 3
    assert make.installed_extras() is None
    assert "pip could not install .[dev]" in capsys.readouterr().err


def test_a_python_without_venv_says_what_to_install(make, commands, capsys):
    make.fails = "venv"
    assert make.main(["run"]) == 3
    assert "python3-venv" in capsys.readouterr().err


def test_an_older_python_is_told_what_it_needs(make, capsys, monkeypatch):
    monkeypatch.setattr(make.sys, "version_info", (3, 10, 4))
    assert make.main(["run"]) == 3
    assert "needs Python 3.11 or newer, this is 3.10" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["tset"]], ids=["none", "misspelt"])
def test_an_unknown_command_ends_with_2_and_lists_the_commands(make, argv, capsys):
    assert make.main(argv) == 2
    assert "run,test,test-slow,test-gpu,check,bench,exe" in capsys.readouterr().err


def test_check_runs_every_tool_after_a_failure(make, commands):
    make.ensure("dev")
    commands.clear()
    make.fails = "--check"
    assert make.main(["check"]) == 1
    assert len(commands) == len(make.CHECKS)


def test_check_passes_when_every_tool_does(make, commands):
    assert make.main(["check"]) == 0


def test_tests_run_with_one_torch_thread_per_process(make, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert make.one_thread()["OMP_NUM_THREADS"] == "1"


def test_the_makefile_has_a_target_for_every_command(make):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None
    assert targets[1].split() == list(make.COMMANDS)


def test_make_py_starts_without_any_installed_package():
    command = [sys.executable, "-I", "-S", str(ROOT / "packaging" / "make.py"), "nothing"]
    assert subprocess.run(command, capture_output=True).returncode == 2


def test_every_pin_is_exact():
    assert [str(pin) for pin in pins().values() if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []


def test_the_torch_that_make_installs_is_the_pinned_one(make):
    assert str(pins()["torch"]) == make.TORCH


def test_every_requirement_is_pinned_with_all_that_it_needs():
    direct = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"], "hatchling"]
    seen: set[tuple[str, str]] = set()
    names: set[str] = set()
    for line in direct:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            names |= needed(requirement, seen)
    assert names - set(pins()) == set()
    optional = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    declared = {canonicalize_name(Requirement(line).name) for line in [*direct, *optional]}
    assert declared - set(pins()) == set()
