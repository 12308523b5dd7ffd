"""The selftest prints a line for every gate, goes on after one that is shut, and ends with 1 for it."""

import sys
from pathlib import Path

import pytest

from sigma.core.errors import ConfigError
from sigma_app import commands
from sigma_app.selftest import contents, gate, kernels, processes, runner, runs
from sigma_app.selftest.gate import Gate, GateError, NotHereError
from sigma_app.session import Session


def fail() -> str:
    raise GateError("token=hf_AbCdEfGhIjKlMnOp was found\nin two lines")


def absent() -> str:
    raise NotHereError("no GPU")


def run(gates: list[Gate], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(runner, "GATES", tuple(gates))
    return runner.run_gates(Session(()))


def test_every_gate_has_a_line_and_one_that_is_shut_ends_with_1(monkeypatch, capsys):
    code = run([Gate("first", fail), Gate("second", lambda: "fine"), Gate("third", absent)], monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert [line.split()[:2] for line in lines[:3]] == [["FAIL", "first"], ["ok", "second"], ["skip", "third"]]
    assert lines[3] == "selftest failed: first"
    assert "GateError: token=[redacted]" in lines[0]
    assert "hf_Ab" not in lines[0]


def test_open_gates_and_those_that_do_not_apply_end_with_0(monkeypatch, capsys):
    assert run([Gate("first", lambda: "fine"), Gate("second", absent)], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "selftest passed: 2 gates"


def test_any_exception_shuts_a_gate(monkeypatch, capsys):
    assert run([Gate("first", lambda: str(1 / 0))], monkeypatch) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_gates_have_names_of_their_own():
    names = [one.name for one in runner.GATES]
    assert len(set(names)) == len(names) > 15


def test_the_flag_runs_the_gates_and_takes_no_arguments(monkeypatch):
    monkeypatch.setattr(runner, "run_gates", lambda session: 7)
    command, rest = commands.choose(["--selftest"])
    assert command(rest, Session(())) == 7
    command, rest = commands.choose(["--selftest", "--steps"])
    with pytest.raises(ConfigError, match="takes no arguments, got '--steps'"):
        command(rest, Session(()))


def test_gates_of_the_executable_do_not_apply_from_source():
    for check in (contents.nothing_else, contents.args_file, processes.worker_program, processes.anywhere):
        with pytest.raises(NotHereError, match="only the executable"):
            check()


@pytest.mark.parametrize("name", ["pytest", "triton/backends/amd"])
def test_something_unwanted_in_the_bundle_shuts_its_gate(home: Path, monkeypatch, name):
    (home / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", str(home), raising=False)
    with pytest.raises(GateError, match=name):
        contents.nothing_else()


def test_a_module_without_its_source_is_noticed(home: Path):
    module = type(sys)("made")
    module.__file__ = str(home / "made.pyc")
    with pytest.raises(GateError, match="made has no source file"):
        gate.module_source(module)


@pytest.mark.parametrize(
    "code, words",
    [
        ("raise SystemExit(3)", "ended with 3: no output"),
        ("1/0", "ZeroDivisionError"),
        ("import sys; sys.exit('the cause\\n[PYI-7:ERROR] of the loader')", "ended with 1: the cause"),
    ],
)
def test_a_child_that_fails_gives_its_code_and_last_words(code, words):
    with pytest.raises(GateError, match=words):
        gate.output_of(gate.child(["-c", code]))


@pytest.mark.parametrize("code", [kernels.LOAD_MODULE, processes.ISOLATION, runs.CRASH, runs.SEGFAULT])
def test_what_children_are_told_to_run_is_python(code):
    compile(code, "<gate>", "exec")


def test_children_get_folders_of_their_own(home: Path):
    code = "import os; print(os.environ['TRITON_CACHE_DIR'], os.environ['XDG_STATE_HOME'])"
    text = gate.output_of(gate.child(["-c", code], **gate.own_folders(home)))
    assert text == f"{home / 'triton'} {home / 'state'}"
