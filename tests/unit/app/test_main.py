"""argv in, exit code and words out; a stand-in trains, so that torch's part is not what is tested."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from sigma.config.explain import ARGS_FILE_NAME
from sigma.core.errors import MissingRequirementError, SigmaError
from sigma.core.lock import RunLockedError
from sigma_app.__main__ import end, main
from sigma_app.nvidia import Gpu, Nvidia
from sigma_app.session import Session

DATA = Path(__file__).parents[2] / "data"


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def read_report(line: str) -> dict:
    label, _, path = line.partition(": ")
    assert label in ("crash report", "report of the stop")
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("argv", [[], ["train"], ["--steps", "9"], ["train", "--steps", "9"]], ids=" ".join)
def test_without_an_args_file_the_defaults_run_and_a_commented_file_is_written(argv, home, trainer, capsys):
    assert main([*argv, "--device", "cpu"]) == 0
    assert (home / ARGS_FILE_NAME).read_text().startswith("# Arguments of SIGMA")
    out = capsys.readouterr().out
    assert out.startswith("SIGMA 0.1.0\n")
    assert f"wrote a commented one to {home / ARGS_FILE_NAME}" in out
    assert "trains a small demonstration on the CPU" in out
    assert trainer.config.run.output_dir == home / "runs" / "sigma_main"
    assert main(["train", "--device", "cpu"]) == 0
    assert "wrote" not in capsys.readouterr().out


def test_args_file_in_the_working_directory_is_read_and_the_command_line_wins(home, trainer):
    (home / ARGS_FILE_NAME).write_text("--seed 3\n--steps 4\n--device cpu\n")
    assert main(["--steps", "5"]) == 0
    assert (trainer.config.run.seed, trainer.config.train.steps) == (3, 5)
    assert trainer.origins["seed"] == f"{ARGS_FILE_NAME}:1"


def test_named_file_stands_in_for_the_one_in_the_working_directory(home, trainer):
    (home / ARGS_FILE_NAME).write_text("--seed 3\n")
    (home / "mine.txt").write_text("--steps 4\n--device cpu\n")
    assert main(["train", "@mine.txt"]) == 0
    assert (trainer.config.run.seed, trainer.config.train.steps) == (1337, 4)


def test_trainer_gets_a_resolved_configuration(home, trainer):
    assert main(["--device", "cpu"]) == 0
    assert trainer.config.run.preset == "demo"
    assert trainer.config.model.d_model is not None
    assert trainer.origins["d_model"] == "preset demo"


def test_complete_predecessor_file_starts_training_and_says_what_changed(home, trainer, capsys):
    (home / ARGS_FILE_NAME).write_bytes((DATA / "predecessor_args.txt").read_bytes())
    assert main(["--device", "cpu", "--no-require-cuda"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 170
    assert len({line.split(": ")[2] for line in warnings}) == 170, "each flag once"
    assert trainer.config.run.output_dir == home / "runs" / "sigma_main"


def test_predecessor_file_on_a_machine_without_gpu_is_exit_3(home, trainer, capsys, monkeypatch):
    monkeypatch.setattr("sigma_app.session.cuda_memory_gb", lambda: None)
    (home / ARGS_FILE_NAME).write_bytes((DATA / "predecessor_args.txt").read_bytes())
    assert main([]) == 3
    assert last_line(capsys.readouterr().err).startswith(
        "sigma: --require-cuda: no usable NVIDIA GPU; run `sigma doctor`"
    )


@pytest.mark.parametrize(
    "end, words",
    [
        (("finished", 0, None), "finished after step 7; see "),
        (("already_finished", 0, None), "this run is finished (step 7)"),
        (("interrupted", 130, "SIGINT"), "report of the stop: "),
        (("interrupted", 143, "SIGTERM"), "report of the stop: "),
    ],
    ids=["finished", "already-finished", "ctrl-c", "sigterm"],
)
def test_exit_code_is_the_trainers(end, words, trainer, capsys):
    trainer.end = end
    assert main(["--device", "cpu"]) == end[1]
    line = last_line(capsys.readouterr().out)
    assert words in line
    if end[2]:
        report = read_report(line)
        assert (report["kind"], report["exception_type"], report["step"]) == ("signal", end[2], 7)


class DataThreadError(SigmaError):
    """Named as the data thread's error is."""


@pytest.mark.parametrize(
    "where, error, code, kind",
    [
        ("fail_build", RuntimeError("no such kernel"), 1, "startup"),
        ("fail_run", RuntimeError("boom"), 1, "step"),
        ("fail_run", SigmaError("diverged; lower --lr"), 1, "step"),
        ("fail_run", MemoryError(), 1, "out_of_memory"),
        ("fail_run", OSError(28, "No space left on device"), 1, "disk_full"),
        ("fail_run", DataThreadError("the data thread failed"), 1, "data_thread"),
        ("fail_build", MissingRequirementError("no GPU; get one"), 3, None),
        ("fail_build", RunLockedError("in use by process 5; stop it"), 2, None),
        ("fail_run", KeyboardInterrupt(), 130, None),
    ],
    ids=[
        "bad-start",
        "step",
        "known-error",
        "out-of-memory",
        "disk-full",
        "data-thread",
        "missing",
        "locked",
        "ctrl-c",
    ],
)
def test_failure_has_its_code_and_its_report_on_the_last_line(where, error, code, kind, trainer, home, capsys):
    setattr(trainer, where, error)
    assert main(["--device", "cpu", "--hf-token", "hf_abcdefghijkl"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    errors = list((home / "runs" / "sigma_main").glob("errors/crash_*.json"))
    if kind is None:
        assert errors == []
        return
    report = read_report(last_line(err))
    assert [Path(last_line(err).removeprefix("crash report: "))] == errors
    assert report["kind"] == kind
    assert report["exception_type"] == type(error).__name__
    assert "hf_abc" not in errors[0].read_text()


def test_crash_before_the_output_folder_is_known_is_reported_beside_the_args_file(home, trainer, capsys, monkeypatch):
    monkeypatch.setattr("sigma_app.session.resolve_parsed", lambda *_: 1 / 0)
    assert main(["--device", "cpu"]) == 1
    path = Path(last_line(capsys.readouterr().err).removeprefix("crash report: "))
    assert path.parent == home / "errors"
    assert json.loads(path.read_text())["kind"] == "startup"


def test_crash_report_goes_to_the_log_folder_when_the_others_are_closed(home, trainer, capsys, tmp_path):
    for folder in (home, home / "out"):
        folder.mkdir(exist_ok=True)
        (folder / "errors").write_text("a file where the folder would be")
    trainer.fail_build = RuntimeError("x")
    assert main(["--device", "cpu", "--output-dir", "out"]) == 1
    path = Path(last_line(capsys.readouterr().err).removeprefix("crash report: "))
    assert path.parent == tmp_path / "state" / "sigma" / "logs" / "errors"
    assert path.exists()


def test_report_that_cannot_be_written_anywhere_is_said_below_the_traceback(trainer, capsys, monkeypatch):
    def full(*_args, **_words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sigma.train.crash.write_crash_report", full)
    trainer.fail_run = RuntimeError("boom")
    assert main(["--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert "RuntimeError: boom" in err
    assert last_line(err) == "no crash report: [Errno 28] No space left on device"


def test_switched_off_report_shows_the_traceback_instead(home, trainer, capsys):
    trainer.fail_run = RuntimeError("boom")
    assert main(["--device", "cpu", "--no-crash-report-enabled"]) == 1
    assert "RuntimeError: boom" in last_line(capsys.readouterr().err)
    assert not (home / "runs/sigma_main/errors").exists()


def test_output_folder_that_cannot_be_is_a_configuration_error(home, trainer, capsys):
    (home / "file").write_text("")
    assert main(["--device", "cpu", "--output-dir", "file/run"]) == 2
    assert "give another folder" in last_line(capsys.readouterr().err)


def test_log_file_holds_what_was_printed(trainer, capsys, tmp_path):
    trainer.fail_run = RuntimeError("boom token=abc123secret")
    main(["--device", "cpu"])
    (log,) = (tmp_path / "state" / "sigma" / "logs").glob("*.log")
    text = log.read_text()
    assert text.startswith("SIGMA 0.1.0 --device cpu\n")
    assert "loading torch" in text
    assert "RuntimeError: boom" in text
    assert "abc123secret" not in text
    assert not list(log.parent.glob("*.faults")), "no native crash, no file"


def test_unwritable_log_folder_is_said_and_training_goes_on(trainer, capsys, tmp_path):
    (tmp_path / "state").write_text("a file where the folder would be")
    assert main(["--device", "cpu"]) == 0
    assert "warning: no log file in " in capsys.readouterr().err


def test_streams_are_given_back(trainer):
    before = sys.stdout, sys.stderr
    main(["--device", "cpu"])
    assert (sys.stdout, sys.stderr) == before


def test_a_report_about_the_last_start_that_cannot_be_written_does_not_stop_this_one(trainer, capsys, monkeypatch):
    def full(*_args, **_words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sigma_app.training.told_at_start", full)
    assert main(["--device", "cpu"]) == 0
    assert "its report cannot be written: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_gpu_that_cannot_be_used_is_said_before_the_cpu_trains(trainer, capsys, monkeypatch):
    monkeypatch.setattr("sigma_app.session.cuda_memory_gb", lambda: None)
    monkeypatch.setattr("sigma_app.session.torch_cuda", lambda: "13.0")
    monkeypatch.setattr("sigma_app.nvidia.find", lambda: Nvidia("550.1", (Gpu("NVIDIA L4", 24.0, (8, 9)),)))
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert "GPU         NVIDIA L4, 24 GB, driver 550.1 (CUDA 13 needs driver 580 or newer)" in out
    assert "warning: the GPU cannot be used: the driver is 550.1, and CUDA 13.0 needs 580 or newer" in err


def test_caches_are_below_the_cache_folder_and_never_in_the_working_directory(home, trainer, tmp_path):
    main(["--device", "cpu"])
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(tmp_path / "cache"))
    assert os.environ["TRITON_BACKENDS_IN_TREE"] == "1"
    assert {path.name for path in home.iterdir()} == {ARGS_FILE_NAME, "runs"}


def test_signals_are_left_as_they_were(trainer):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    main(["--device", "cpu"])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_training_whose_output_nobody_reads_any_more_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(("train",), crash_report=False)
    session.log = cast("Any", object())
    assert end(BrokenPipeError(), session) == 1
    assert "BrokenPipeError" in capsys.readouterr().err


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that the driver and torch see."""
    card = Gpu("NVIDIA RTX 4090", 24.0, (8, 9))
    monkeypatch.setattr("sigma_app.nvidia.find", lambda: Nvidia("580.95.05", (card,)))
    monkeypatch.setattr("sigma_app.session.cuda_memory_gb", lambda: 24.0)


def test_the_result_of_a_real_kernel_comes_before_where_the_run_writes(trainer, gpu, monkeypatch, capsys):
    monkeypatch.setattr("sigma_app.commands.kernel_lines", lambda model: ["kernels     a real one ran"])
    assert main(["--output-dir", "run"]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    begin = words.index("GPU")
    assert words[begin : begin + 6] == ["GPU", "loading", "kernels", "args", "run", "log"]


def test_a_kernel_that_fails_ends_the_start_before_a_run_folder_is_named_or_made(trainer, gpu, monkeypatch, capsys):
    def fail(model):
        raise MissingRequirementError("a Triton kernel cannot run")

    monkeypatch.setattr("sigma_app.commands.kernel_lines", fail)
    assert main(["--output-dir", "run"]) == 3
    output = capsys.readouterr()
    assert "a Triton kernel cannot run" in output.err
    assert "run folder" not in output.out
    assert not Path("run").exists()


def test_without_a_gpu_the_places_are_said_before_torch_is_loaded(trainer, capsys):
    assert main(["--device", "cpu", "--output-dir", "run"]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    begin = words.index("GPU")
    assert words[begin : begin + 5] == ["GPU", "args", "run", "log", "loading"]
