"""metrics.jsonl and the meters behind it."""

import json
import math
from pathlib import Path

import pytest
import torch

from sigma.core.strict_json import loads
from sigma.train.clock import PHASES
from sigma.train.metrics import EMA_DECAY, IntervalMeter, MetricsLog, SpeedMeter, bits_per_byte
from sigma.train.step import StepResult


def rows(run_dir: Path) -> list[dict]:
    return [loads(line) for line in (run_dir / "metrics.jsonl").read_bytes().splitlines()]


def result(loss: float, labels: int = 10, skipped: float = 0.0) -> StepResult:
    return StepResult(torch.tensor(loss), torch.tensor(0.5), torch.tensor(2.0), torch.tensor(skipped), labels)


def test_rows_are_strict_json_with_kind_step_segment_and_time(tmp_path: Path) -> None:
    MetricsLog(tmp_path).write("train", 3, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    (row,) = rows(tmp_path)
    assert row.pop("t") > 1e9
    assert row == {"kind": "train", "step": 3, "seg": 0, "loss": None, "grad_norm": None, "lr": 0.1}


def test_a_resumed_run_appends_a_new_segment(tmp_path: Path) -> None:
    for _ in range(3):
        MetricsLog(tmp_path).write("event", 1, {"event": "start"})
    assert [row["seg"] for row in rows(tmp_path)] == [0, 1, 2]


def test_a_torn_last_line_is_completed_and_told(tmp_path: Path) -> None:
    MetricsLog(tmp_path).event("start", 1)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind":"train","seg":0,"st')
    log = MetricsLog(tmp_path)
    log.event("again", 1)
    assert log.torn_line_completed
    lines = path.read_bytes().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["seg"] == 1


def test_an_untorn_file_is_left_alone(tmp_path: Path) -> None:
    MetricsLog(tmp_path).event("start", 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert not MetricsLog(tmp_path).torn_line_completed
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_listeners_receive_every_row(tmp_path: Path) -> None:
    seen: list[dict] = []
    MetricsLog(tmp_path, [seen.append]).event("start", 2, reason="x")
    assert seen == rows(tmp_path)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        MetricsLog(tmp_path).write("poem", 1, {})


def test_interval_loss_is_the_mean_over_labels() -> None:
    meter = IntervalMeter(torch.device("cpu"))
    meter.add(result(2.0, labels=10), text_bytes=30)
    meter.add(result(5.0, labels=20), text_bytes=50)
    row = meter.read({"lr": 0.1, "temperature": torch.tensor(1.5)})
    assert row["loss"] == pytest.approx((20 + 100) / 30)
    assert row["train_bpb"] == pytest.approx(120 / math.log(2) / 80)
    assert row["loss_ema"] == pytest.approx(EMA_DECAY * 2.0 + (1 - EMA_DECAY) * 5.0)
    assert (row["lr"], row["temperature"], row["grad_norm"], row["aux_loss"]) == (0.1, 1.5, 2.0, 0.5)


def test_reading_starts_a_new_interval() -> None:
    meter = IntervalMeter(torch.device("cpu"))
    meter.add(result(2.0), text_bytes=30)
    meter.read({})
    meter.add(result(4.0), text_bytes=30)
    assert meter.read({})["loss"] == pytest.approx(4.0)


def test_skipped_steps_do_not_count() -> None:
    meter = IntervalMeter(torch.device("cpu"))
    meter.add(result(2.0), text_bytes=30)
    meter.add(result(math.nan, skipped=1.0), text_bytes=30)
    row = meter.read({})
    assert row["loss"] == pytest.approx(2.0)
    assert row["loss_ema"] == pytest.approx(2.0)


def test_an_unfinished_interval_survives_a_resume_bit_for_bit() -> None:
    first, second = IntervalMeter(torch.device("cpu")), IntervalMeter(torch.device("cpu"))
    first.add(result(0.1), text_bytes=30)
    second.load_state_dict(loads(json.dumps(first.state_dict())))
    for meter in (first, second):
        meter.add(result(0.7), text_bytes=30)
    assert first.read({}) == second.read({})


def test_a_fresh_meter_has_a_state_too() -> None:
    meter = IntervalMeter(torch.device("cpu"))
    meter.load_state_dict(IntervalMeter(torch.device("cpu")).state_dict())
    meter.add(result(3.0), text_bytes=1)
    assert meter.read({})["loss_ema"] == pytest.approx(3.0)


def test_bits_per_byte_of_a_uniform_byte_is_eight() -> None:
    assert bits_per_byte(math.log(256), 1) == pytest.approx(8)
    assert math.isnan(bits_per_byte(1.0, 0))


def test_speed_counts_core_and_effective_tokens() -> None:
    meter = SpeedMeter(flops_per_token=3.0, peak_flops=1e6)
    meter.add(600)
    meter.add(600)
    phases = dict.fromkeys(PHASES, 0.0) | {"forward": 1.0, "backward": 2.0, "opt_step": 1.0, "data": 0.5}
    row = meter.read(phases, steps_left=7)
    assert row["core_tokens_per_s"] == 300
    assert row["effective_tokens_per_s"] == pytest.approx(1200 / row["wall_s"])
    assert (row["perf_bottleneck_stage"], row["perf_bottleneck_share"]) == ("backward", pytest.approx(2 / 4.5))
    assert row["eta_s"] == pytest.approx(7 * row["wall_s"] / 2)
    assert row["mfu"] == pytest.approx(row["effective_tokens_per_s"] * 3.0 / 1e6)
    assert {f"phase_{phase}_s" for phase in PHASES} <= row.keys()


def test_without_a_known_peak_there_is_no_mfu() -> None:
    assert "mfu" not in SpeedMeter(3.0, None).read(dict.fromkeys(PHASES, 1.0), 0)
