"""The program as a user starts it: a process of its own, from the first line to a run that continues and answers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sigma_app.selftest.runs import TINY_MODEL

ROOT = Path(__file__).parents[2]
TINY = f"""\
--device cpu
--steps 1000
--tokenizer bytes
--seq-len 256
--batch-size 32
--micro-batch-size 32
{TINY_MODEL}"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("user")
    own = {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CACHE", "DATA")}
    code = os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "app"))
    return {**os.environ, **own, "PYTHONPATH": code, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def sigma(cwd: Path, environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sigma_app", *argv]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=300)


def test_help_takes_less_than_300_ms_of_the_processor(tmp_path: Path, environment: dict[str, str]):
    seconds: list[float] = []
    for _ in range(3):
        before = psutil.Process().cpu_times()
        assert sigma(tmp_path, environment, "--help").returncode == 0
        after = psutil.Process().cpu_times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["explain-config", "--device", "cpu"], ["train", "--stepz"]]
)
def test_light_commands_load_no_heavy_library(tmp_path: Path, environment: dict[str, str], argv: list[str]):
    code = (
        f"import sys; from sigma_app.__main__ import main; main({argv!r})\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'triton', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_first_line_is_there_before_torch(tmp_path: Path, environment: dict[str, str]):
    (tmp_path / "train_sigma_args.txt").write_text("--stepz 1")
    command = [sys.executable, "-m", "sigma_app"]
    seconds: list[float] = []
    for _ in range(3):
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as p:
            assert p.stdout is not None
            assert p.stdout.readline().startswith(b"SIGMA ")
            used = psutil.Process(p.pid).cpu_times()
            seconds.append(used.user + used.system)
            p.communicate()
    assert min(seconds) < 0.3


def test_terminal_without_the_characters_is_no_reason_to_fail(tmp_path: Path, environment: dict[str, str]):
    poor = {**environment, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    done = sigma(tmp_path, poor, "explain-config", "--device", "cpu", "--output-dir", "été")
    assert done.returncode == 0, done.stderr
    assert "?t?" in done.stdout


def test_closed_pipe_is_not_a_crash(tmp_path: Path, environment: dict[str, str]):
    process = subprocess.Popen(
        [sys.executable, "-m", "sigma_app", "--help"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[Path, int, str]:
    """A tiny training that was stopped with Ctrl+C after its first row: its folder, exit code and output."""
    folder = tmp_path_factory.mktemp("train") / "with a space é"
    folder.mkdir()
    (folder / "train_sigma_args.txt").write_text(TINY)
    command = [sys.executable, "-m", "sigma_app"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGINT)
    return folder / "runs" / "sigma_main", process.wait(), output


@pytest.fixture(scope="module")
def run(interrupted: tuple[Path, int, str], environment: dict[str, str]) -> Path:
    """The same training, started again and brought to its end after at most three more steps."""
    folder = interrupted[0]
    done = sigma(folder.parents[1], environment, "--steps", str(trained_steps(folder)[-1] + 2))
    assert done.returncode == 0, done.stderr
    assert "this run continues with --steps: 1000 -> " in done.stderr
    return folder


def trained_steps(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [row["step"] for row in rows if row["kind"] == "train"]


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C cannot be sent to one process there")
def test_ctrl_c_saves_and_names_the_report_last(interrupted: tuple[Path, int, str]):
    folder, code, output = interrupted
    assert code == 130
    assert output.startswith("SIGMA ")
    assert "no GPU in use: this trains a small demonstration on the CPU (1000 steps)" in output
    last = output.splitlines()[-1]
    assert json.loads(Path(last.removeprefix("report of the stop: ")).read_text())["exception_type"] == "SIGINT"
    assert Path(last.removeprefix("report of the stop: ")).parent == folder / "errors"
    assert list((folder / "checkpoints").glob("step-*/COMMIT"))


def test_started_again_it_continues_to_the_end(run: Path):
    steps = trained_steps(run)
    assert steps == list(range(1, len(steps) + 1)), "no step twice, none left out"
    names = {path.name for path in run.iterdir()}
    assert {"metrics.jsonl", "resolved_args.txt", "status.json", "report.html", "run_manifest.json"} <= names
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_finished_run_started_again_says_so(run: Path, environment: dict[str, str]):
    steps = trained_steps(run)
    done = sigma(run.parents[1], environment, "--steps", str(steps[-1]))
    assert (done.returncode, f"this run is finished (step {steps[-1]})" in done.stdout) == (0, True)
    assert trained_steps(run) == steps


def test_other_sizes_in_the_same_folder_are_refused_and_nothing_is_touched(run: Path, environment: dict[str, str]):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}
    done = sigma(run.parents[1], environment, "--steps", "99", "--d-model", "64")
    assert done.returncode == 2, done.stderr
    assert "d_model" in done.stderr.replace("-", "_")
    assert "Traceback" not in done.stderr
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}
    assert after == before


def test_generate_continues_a_prompt(run: Path, environment: dict[str, str]):
    argv = ["generate", "--run", str(run), "--prompt", "The é", "--tokens", "12", "--device", "cpu"]
    done = sigma(run, environment, *argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The é")
    assert len(done.stdout) > len("The é\n")


def test_report_is_written_again(run: Path, environment: dict[str, str]):
    (run / "report.html").unlink()
    done = sigma(run, environment, "report", "--run", ".")
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()


def test_second_trainer_in_the_same_folder_is_told_the_pid_of_the_first(run: Path, environment: dict[str, str]):
    hold = (
        "import pathlib, sys; from sigma.core.lock import RunLock\n"
        "RunLock(pathlib.Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(run)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = sigma(run.parents[1], environment, "--steps", "99")
        holder.communicate(b"")
    assert done.returncode == 2
    assert f"in use by process {holder.pid}" in done.stderr
