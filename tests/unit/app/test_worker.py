"""sigma-worker runs a script and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import sys; sys.frozen = True; sys.argv = ['sigma-worker', *sys.argv[1:]]
from sigma_app.worker import start; start()
"""


def worker(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run([sys.executable, "-c", START, *argv], env=env, capture_output=True, text=True, timeout=60)


def test_it_runs_code_and_hands_over_arguments_and_exit_code(home: Path):
    done = worker("-c", "import sys; print(sys.argv); sys.exit(5)", "a")
    assert (done.returncode, done.stdout.strip()) == (5, "['-c', 'a']")


def test_it_runs_a_file(home: Path):
    (home / "script.py").write_text("import sys; print(__name__, sys.argv[1:])")
    assert worker("script.py", "x").stdout.strip() == "__main__ ['x']"


@pytest.mark.parametrize("argv", [[], ["train"], ["--help"], ["--steps", "1"]], ids=["none", "train", "help", "flag"])
def test_it_refuses_to_be_the_program(home: Path, argv: list[str]):
    done = worker(*argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: sigma-worker")
    assert list(home.iterdir()) == []


def test_it_counts_itself_so_that_scripts_cannot_start_each_other_forever(home: Path):
    done = worker("-c", "print(1)", SIGMA_LAUNCH_DEPTH="4")
    assert (done.returncode, done.stdout) == (1, "")
    assert "started itself 5 times" in done.stderr


def test_it_loads_nothing_heavy(home: Path):
    done = worker("-c", "import sys; print({'torch', 'numpy', 'sigma.config', 'rich'} & set(sys.modules))")
    assert done.stdout.strip() == "set()"
