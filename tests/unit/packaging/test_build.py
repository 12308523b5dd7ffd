"""Exit codes of a build, what it refuses, and that a failing step leaves the build before it alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import build
from bundle import environment, freeze, native, product
from bundle.errors import BuildError, MissingError
from sigma.core.lock import RunLock

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which building fails at PyInstaller, with a build before it in `dist`."""
    (tmp_path / "dist" / "sigma").mkdir(parents=True)
    (tmp_path / "dist" / "sigma" / "sigma").write_text("the build before")
    monkeypatch.setattr(build, "WORK", tmp_path / "build")
    monkeypatch.setattr(build.make, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(environment, "check", lambda **_: "linux-x86_64-cpu")
    monkeypatch.setattr(product, "facts", lambda *_: {"epoch": 0, "flavour": "linux-x86_64-cpu"})
    monkeypatch.setattr(native, "carry", lambda folder: folder.mkdir())

    def fail(*_):
        raise BuildError("PyInstaller ended with 1")

    monkeypatch.setattr(freeze, "freeze", fail)
    return tmp_path


def run(project, *argv):
    return build.main(["--inside", "--dist", str(project / "dist"), *argv])


def test_a_failing_step_ends_with_1_and_leaves_the_previous_build(project, capsys):
    assert run(project) == 1
    assert "error: PyInstaller ended with 1" in capsys.readouterr().err
    assert (project / "dist" / "sigma" / "sigma").read_text() == "the build before"


def test_a_second_build_at_the_same_time_is_refused_and_changes_nothing(project, capsys):
    (project / "build" / "work").mkdir(parents=True)
    (project / "build" / "work" / "of the first").touch()
    with RunLock(project / "build"):
        assert run(project) == 1
    assert (
        f"another build is at work ({project / 'build'} is in use by process {os.getpid()}" in capsys.readouterr().err
    )
    assert (project / "build" / "work" / "of the first").exists()


def test_a_project_that_cannot_be_written_to_is_named(project, capsys):
    (project / "build").write_text("a file where the folder would be")
    assert run(project) == 1
    assert f"error: {project / 'build'} cannot be written to" in capsys.readouterr().err


def test_a_work_folder_that_is_in_use_is_named(project, monkeypatch, capsys):
    (project / "build" / "work").mkdir(parents=True)

    def refuse(path):
        raise PermissionError(13, "in use by another process", str(path / "sigma.exe"))

    monkeypatch.setattr(build.shutil, "rmtree", refuse)
    assert run(project) == 1
    said = capsys.readouterr().err
    assert "sigma.exe cannot be removed (in use by another process); close what uses it" in said


def test_a_missing_compiler_ends_with_3_and_leaves_the_previous_build(project, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(native, "carry", lambda folder: native.find_compiler())
    assert run(project) == 3
    assert "install gcc" in capsys.readouterr().err
    assert (project / "dist" / "sigma" / "sigma").read_text() == "the build before"


def test_a_gate_of_the_selftest_that_is_shut_ends_the_build(tmp_path):
    folder = tmp_path / "sigma"
    folder.mkdir()
    (folder / "sigma").write_text("#!/bin/sh\necho \"$1 in $0, PATH='$PATH'\"; exit 1\n")
    (folder / "sigma").chmod(0o755)
    with pytest.raises(BuildError, match="ended with 1"):
        build.selftest(folder, tmp_path / build.MOVED / "sigma")


def test_the_selftest_runs_in_a_moved_copy_with_an_empty_path(tmp_path, capfd):
    folder = tmp_path / "sigma"
    folder.mkdir()
    (folder / "sigma").write_text("#!/bin/sh\necho \"$1 $0 '$PATH'\"\n")
    (folder / "sigma").chmod(0o755)
    build.selftest(folder, tmp_path / build.MOVED / "sigma")
    assert capfd.readouterr().out.strip() == f"--selftest {tmp_path / build.MOVED / 'sigma' / 'sigma'} ''"
    assert not (tmp_path / build.MOVED).exists()


@pytest.mark.parametrize("system, driver", [("nt", False), ("posix", True)], ids=["windows", "driver"])
def test_a_torch_without_cuda_is_refused_where_it_is_a_mistake(monkeypatch, system, driver):
    monkeypatch.setattr(environment.importlib.metadata, "version", lambda _: "1")
    monkeypatch.setattr(environment, "torch_cuda", lambda: None)
    monkeypatch.setattr(environment, "ON_WINDOWS", system == "nt")
    with pytest.raises(MissingError, match="built for the CPU"):
        environment.check(cpu_allowed=False, has_driver=driver)
    assert environment.check(cpu_allowed=True, has_driver=driver).endswith("-cpu")


def test_a_bundle_for_the_cpu_is_not_made_of_a_torch_with_cuda(monkeypatch):
    monkeypatch.setattr(environment.importlib.metadata, "version", lambda _: "1")
    monkeypatch.setattr(environment, "torch_cuda", lambda: "13.0")
    with pytest.raises(MissingError, match=r"brings CUDA 13\.0"):
        environment.check(cpu_allowed=True, has_driver=False)


@pytest.mark.parametrize("cuda, ending", [(None, "-cpu"), ("13.0", "-cu130")])
def test_the_name_says_system_machine_and_cuda(monkeypatch, cuda, ending):
    monkeypatch.setattr(environment.importlib.metadata, "version", lambda _: "1")
    monkeypatch.setattr(environment, "torch_cuda", lambda: cuda)
    monkeypatch.setattr(environment, "ON_WINDOWS", False)
    name = environment.check(cpu_allowed=False, has_driver=False)
    assert name.endswith(ending)
    assert name == name.lower()


def test_the_date_of_every_file_is_given_or_that_of_the_last_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "123")
    assert environment.epoch(ROOT) == 123
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert environment.epoch(tmp_path) == environment.FALLBACK_EPOCH


def test_wrong_arguments_end_with_2():
    done = subprocess.run([sys.executable, ROOT / "packaging" / "build.py", "--gpu"], capture_output=True, text=True)
    assert (done.returncode, "unrecognized arguments: --gpu" in done.stderr) == (2, True)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_shell_script_hands_over_arguments_and_exit_code_from_any_folder(tmp_path, code):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$PWD|$*"\nexit {code}\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(
        [ROOT / "build_exe.sh", "--cpu", "a b"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (code, f"{ROOT}|packaging/build.py --cpu a b")


def test_the_batch_file_has_no_way_to_end_without_saying_its_code():
    """`exit /b %errorlevel%` after a `goto` from an `if not exist` is 0: every failure here sets its own number."""
    lines = (ROOT / "build_exe.bat").read_bytes().decode("ascii").split("\r\n")
    assert not any("goto fail" in line or "goto :fail" in line for line in lines)
    ends = [line for line in lines if "exit /b" in line]
    assert ends == ["exit /b 1", "exit /b 3", "exit /b %ERRORLEVEL%"]
    assert lines[lines.index("exit /b %ERRORLEVEL%") - 1].startswith('"%PYTHON%" ')
