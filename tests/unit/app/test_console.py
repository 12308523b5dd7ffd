"""What a person sees of a run."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sigma_app.console import Console, closing_lines, duration

STARTUP = {
    "kind": "startup", "step": 0, "seg": 0, "t": 1.0, "run_dir": "runs/x", "device": "cpu",
    "device_name": "2 CPU threads", "precision": "fp32",
    "parameters": 1234567, "active_parameters": 1000000, "steps": 500, "seq_len": 64,
    "batch_size": 8, "micro_batch_size": 4, "log_interval": 10, "eval_interval": 200, "sample_interval": 0,
    "routing": ["optimizer role", "muon hidden"], "checkpoint_resume_step": None,
}  # fmt: skip
TRAIN = {
    "kind": "train", "step": 120, "seg": 0, "t": 1.0, "loss": 4.5678, "train_bpb": 2.1,
    "effective_tokens_per_s": 2345.6, "eta_s": 192.0, "skipped_steps": 0,
}  # fmt: skip
FINAL = {
    "kind": "eval", "step": 500, "seg": 0, "t": 1.0, "final": True, "val_bpb": 1.9, "val_bytes": 1048576,
    "gzip_bpb": 2.5, "xz_bpb": 2.2, "witten_bell_bpb": 2.4,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*rows: dict[str, Any], stream: io.StringIO | None = None, environment: dict[str, str] | None = None) -> str:
    stream = stream or io.StringIO()
    with Console(stream, environment or {}) as console:
        for row in rows:
            console(row)
    return stream.getvalue()


def test_the_start_says_device_folder_size_and_when_to_expect_what() -> None:
    text = shown(STARTUP)
    for part in (
        "cpu",
        "1,234,567",
        "muon hidden",
        "step 1 of 500",
        "validation every 200",
        "text sample at the end",
    ):
        assert part in text


def test_the_kernels_of_the_first_step_are_said_where_there_are_some() -> None:
    text = shown(STARTUP | {"kernels_ahead": 38, "startup_kernels_s": 5.06})
    assert "kernels     38 of the first step ready in 5.1 s" in text
    kept = shown(STARTUP | {"kernels_ahead": 0, "startup_kernels_s": 0.01})
    assert "kernels     of the first step kept from an earlier start" in kept
    assert "first step" not in shown(STARTUP)


def test_what_comes_less_often_than_the_run_is_long_is_announced_for_the_end() -> None:
    text = shown(STARTUP | {"steps": 8})
    assert "progress with the time left at the end, validation at the end" in text


def test_a_start_after_the_last_step_says_that_only_the_validation_is_left() -> None:
    text = shown(STARTUP | {"checkpoint_resume_step": 500})
    assert "the final validation is left" in text
    assert "continues after" not in text


@pytest.mark.parametrize(
    "interval, step, expected",
    [(200, 10, "step 200, in about 1m14s"), (200, 210, "step 400, in about 2m06s"), (0, 10, "step 500, in about 3m12s"),
     (900, 10, "step 500, in about 3m12s")],
    ids=["fresh", "continued", "only-at-the-end", "longer-than-the-run"],
)  # fmt: skip
@pytest.mark.parametrize("stream", [io.StringIO, Terminal], ids=["plain", "terminal"])
def test_the_first_measured_speed_says_when_the_first_sample_comes(interval, step, expected, stream) -> None:
    text = shown(
        STARTUP | {"sample_interval": interval}, TRAIN | {"step": step}, TRAIN | {"step": step + 10}, stream=stream()
    )
    assert f"first text sample after {expected}, in the folder samples" in text
    assert text.count("first text sample") == 1


@pytest.mark.parametrize("stream", [io.StringIO, Terminal], ids=["plain", "terminal"])
def test_the_wait_for_the_final_validation_is_announced(stream: type[io.StringIO]) -> None:
    assert "validating on all held-out text" in shown(STARTUP, TRAIN | {"step": 500}, stream=stream())
    assert "validating" not in shown(STARTUP, TRAIN, stream=stream())


def test_a_sample_cannot_steer_the_terminal() -> None:
    sample = {"kind": "sample", "step": 5, "file": "a.txt", "prompts": ["The "], "texts": ["\x1b[2Jc\rat\x07 é"]}
    assert shown(STARTUP, sample).splitlines()[-1].endswith("The \ufffd[2Jc\ufffdat\ufffd é")


def test_retention_is_silent_and_an_empty_detail_is_left_out() -> None:
    event = {"kind": "event", "step": 6, "event": "checkpoint_deleted", "checkpoint": "step-1", "detail": ""}
    assert shown(STARTUP, event) == shown(STARTUP)
    last = shown(STARTUP, event | {"event": "checkpoint_torn_removed"}).splitlines()[-1]
    assert last == "note at step 6: checkpoint torn removed: checkpoint step-1"


def test_a_resumed_start_says_from_where() -> None:
    assert "continues after step 90 of 500" in shown(STARTUP | {"checkpoint_resume_step": 90})


def test_a_training_row_is_one_plain_line_without_a_terminal() -> None:
    assert shown(STARTUP, TRAIN).splitlines()[-1] == "step 120/500  loss 4.5678  bpb 2.1000  2,346 tok/s  left 3m12s"


def test_skipped_updates_and_missing_numbers_are_shown() -> None:
    line = shown(STARTUP, TRAIN | {"loss": None, "skipped_steps": 3.0}).splitlines()[-1]
    assert "loss -" in line
    assert "skipped 3" in line


def test_no_color_gives_plain_lines_on_a_terminal() -> None:
    text = shown(STARTUP, TRAIN, stream=Terminal(), environment={"NO_COLOR": "1"})
    assert "\x1b" not in text
    assert "step 120/500  loss" in text


def test_a_terminal_that_cannot_redraw_gets_plain_lines() -> None:
    assert shown(STARTUP, TRAIN, stream=Terminal(), environment={"TERM": "dumb"}) == shown(STARTUP, TRAIN)


@pytest.mark.parametrize("columns", [40, 80, 120, 200])
def test_a_narrow_terminal_still_gets_every_number(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    text = " ".join(shown(STARTUP, TRAIN, stream=Terminal()).split())
    for part in ("step 120/500", "loss 4.5678", "bpb 2.1000", "2,346 tok/s", "left 3m12s"):
        assert part in text


def test_a_terminal_gets_a_bar_with_the_same_numbers() -> None:
    text = shown(STARTUP, TRAIN, stream=Terminal())
    assert "\x1b" in text
    assert "120/500" in text
    assert "4.5678" in text


def test_the_final_validation_names_what_it_is_compared_with() -> None:
    text = shown(STARTUP, FINAL)
    for part in ("final", "1.9000 bits per byte", "1,048,576 bytes", "gzip -9 2.5000", "Witten-Bell bigram 2.4000"):
        assert part in text


def test_samples_and_events_are_lines() -> None:
    sample = {
        "kind": "sample",
        "step": 5,
        "seg": 0,
        "t": 1.0,
        "file": "samples/a.txt",
        "prompts": ["The "],
        "texts": ["cat\nsat"],
    }
    event = {"kind": "event", "step": 6, "seg": 0, "t": 1.0, "event": "micro_batch_halved", "before": 8, "after": 4}
    lines = shown(STARTUP, sample, event).splitlines()[-2:]
    assert lines[0] == "sample at step 5 (samples/a.txt): The cat sat"
    assert lines[1] == "note at step 6: micro batch halved: before 8, after 4"


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0s"), (59, "59s"), (61, "1m01s"), (7500, "2h05m"), (273600, "3d04h")], ids=str
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "state, part", [("finished", "report.html"), ("already_finished", "raise --steps"), ("interrupted", "SIGTERM")]
)
def test_the_last_line_says_how_it_ended(state: str, part: str) -> None:
    outcome = SimpleNamespace(state=state, step=7, run_dir=Path("runs/x"), signal_name="SIGTERM")
    assert part in closing_lines(outcome)[0]
