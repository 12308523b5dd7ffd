"""The frozen program answers an interpreter's command line like Python, and never starts a training by mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FROZEN = "import sys; sys.frozen = True; sys.argv = ['sigma', *sys.argv[1:]]\n"
START = FROZEN + "from sigma_app.__main__ import main; sys.exit(main())"


def frozen(*argv: str, code: str = START, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program with `sys.frozen` set, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run([sys.executable, "-c", code, *argv], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "argv, out",
    [
        (["-c", "import sys; print(__name__, sys.argv)", "a", "-b"], "__main__ ['-c', 'a', '-b']"),
        (["-u", "-B", "-Xutf8", "-Wignore", "-c", "print(1)"], "1"),
        (["-m", "platform_probe", "x"], "probe ['x'] __main__"),
        (["-mplatform_probe", "x"], "probe ['x'] __main__"),
        (["probe.py", "x", "--y"], "probe ['x', '--y'] __main__"),
    ],
    ids=["code", "switches", "module", "module-joined", "file"],
)
def test_python_command_lines_do_what_python_does(home: Path, argv: list[str], out: str):
    text = "import sys\nprint('probe', sys.argv[1:], __name__)\n"
    (home / "probe.py").write_text(text)
    (home / "platform_probe.py").write_text(text)
    done = frozen(*argv)
    assert (done.returncode, done.stdout.strip()) == (0, out), done.stderr


def test_exit_code_and_traceback_of_the_code_are_its_own(home: Path):
    assert frozen("-c", "import sys; sys.exit(18)").returncode == 18
    done = frozen("-c", "1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "crash report" not in done.stderr


def test_script_inside_the_bundle_runs_as_its_module(home: Path):
    package = home / "bundle" / "deep"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import sys; print(__package__, sys.argv[1:])")
    code = FROZEN + f"sys._MEIPASS = {str(home / 'bundle')!r}; sys.path.insert(0, sys._MEIPASS)\n" + START
    (package / "__main__.py").rename(package / "worker.py")
    done = frozen(str(package / "worker.py"), "--x", code=code)
    assert done.stdout.strip() == "deep ['--x']", done.stderr


def test_spawned_multiprocessing_child_is_served(home: Path):
    (home / "jobs.py").write_text("def double(x):\n    return 2 * x\n")
    parent = FROZEN + (
        "import multiprocessing as mp, os, jobs\n"
        "mp.set_executable(os.environ['PROGRAM'])\n"
        "from sigma_app.__main__ import main\n"
        "with mp.get_context('spawn').Pool(1) as pool: print(pool.map(jobs.double, [4, 5]))\n"
    )
    program = home / "sigma"
    program.write_text(f"#!{sys.executable}\n{START}\n")
    program.chmod(0o755)
    done = frozen(code=parent, PROGRAM=str(program))
    assert done.stdout.strip() == "[8, 10]", done.stderr


def test_child_without_its_arguments_never_trains(home: Path):
    done = frozen("--multiprocessing-fork")
    assert done.returncode != 0
    assert not list(home.iterdir())


def test_endless_self_starts_are_stopped(home: Path):
    done = frozen("-c", "print('ran')", SIGMA_LAUNCH_DEPTH="3")
    assert done.stdout.strip() == "ran"
    done = frozen("-c", "print('ran')", SIGMA_LAUNCH_DEPTH="4")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the program started itself 5 times" in done.stderr


def test_depth_is_handed_to_children(home: Path):
    done = frozen("-c", "import os; print(os.environ['SIGMA_LAUNCH_DEPTH'])", SIGMA_LAUNCH_DEPTH="nonsense")
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize("argv", [["-c", "print(1)"], ["-m", "this"], ["probe.py"]], ids=["code", "module", "file"])
def test_from_source_an_interpreter_command_line_is_refused(home: Path, argv: list[str]):
    done = frozen(*argv, code=START.replace("sys.frozen = True", "pass"))
    assert done.returncode == 2
    assert done.stderr.startswith("sigma: command line: ")
    assert not (home / "runs").exists()
