"""What a run writes: its files, the columns of metrics.jsonl, the counters of the features."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import sigma.build
from sigma.core.strict_json import load_file, loads
from sigma_kernels import pipelining
from tests.e2e.tiny_trainer import TRAIN, Make, digest, rows


def test_a_run_leaves_every_file_that_it_promises(make: Make) -> None:
    trainer = make()
    assert trainer.run().state == "finished"
    names = {"metrics.jsonl", "run_manifest.json", "resolved_args.txt", "status.json", "report.html", "final.json"}
    assert names <= {path.name for path in trainer.run_dir.iterdir()}
    assert [path.name for path in (trainer.run_dir / "samples").iterdir()] == ["step-000000006.txt"]
    manifest = load_file(trainer.run_dir / "run_manifest.json")
    assert manifest["hashes"].keys() == {"corpus", "tokenizer"}
    assert manifest["config"]["train"]["lr"] == TRAIN["lr"]
    assert [start["step"] for start in manifest["starts"]] == [0]


def test_every_column_is_documented(make: Make) -> None:
    trainer = make(eval_interval=3)
    trainer.run()
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"`([a-zX0-9_]+)`", text))
    lines = (trainer.run_dir / "metrics.jsonl").read_bytes().splitlines()
    feature = re.compile(rf"^feature_({'|'.join(sigma.build.FEATURE_NAMES)})_")
    columns = {feature.sub("feature_X_", name) for line in lines for name in loads(line)}
    columns = {re.sub(r"^data_(tokens|dropped)_\w+", r"data_\1_X", name) for name in columns}
    known = documented | {f"feature_X_{part}" for part in ("enabled", "calls", "effective_calls", "s")}
    assert columns - known == set()


@pytest.mark.parametrize("pipelined", [True, False])
def test_a_run_says_whether_its_kernels_are_pipelined(pipelined: bool, make: Make) -> None:
    with nullcontext() if pipelined else pipelining.switched_off():
        assert make().startup["pipelined_loops"] is pipelined


@pytest.mark.parametrize("q_latent", [0, 8])
@pytest.mark.parametrize("shared", [0, 2])
def test_feature_counters_equal_their_closed_form(make: Make, q_latent: int, shared: int) -> None:
    trainer = make(n_layers=3, mamba_ratio=2, q_latent_dim=q_latent, n_shared_experts=shared, micro_batch_size=1)
    trainer.run()
    row, forwards = rows(trainer)[-1], TRAIN["steps"] * 4
    regions = 3 * (3 + shared) + 2 + 1 * (2 + bool(q_latent))
    assert row["feature_instant_calls"] == row["feature_instant_effective_calls"] == forwards * regions
    assert row["feature_diff_mla_calls"] == row["feature_diff_mla_effective_calls"] == forwards
    assert row["instant_saved_bytes_per_row"] > 0
    assert row["instant_compression_ratio"] > 1


def test_without_the_subtraction_differential_attention_is_not_effective(make: Make) -> None:
    trainer = make()
    for module in trainer.model.modules():
        if hasattr(module, "lambda_logit"):
            module.lambda_logit = -torch.inf
    trainer.run()
    row = rows(trainer)[-1]
    assert (row["feature_diff_mla_calls"], row["feature_diff_mla_effective_calls"]) == (12, 0)


def test_features_that_are_off_say_so(make: Make) -> None:
    trainer = make(instant_enabled=False, attention_ratio=0)
    trainer.run()
    row = rows(trainer)[-1]
    for name in ("instant", "diff_mla"):
        assert [row[f"feature_{name}_{part}"] for part in ("enabled", "calls", "effective_calls")] == [0, 0, 0]


def test_validation_and_samples_leave_the_training_alone(make: Make) -> None:
    quiet, busy = make("quiet"), make("busy", eval_interval=1, sample_interval=1)
    quiet.run(), busy.run()
    assert digest(quiet, 6) == digest(busy, 6)
    assert len(rows(busy, "sample")) == TRAIN["steps"]
    counted = [name for name in rows(quiet)[-1] if name.endswith("_calls")]
    assert [rows(quiet)[-1][name] for name in counted] == [rows(busy)[-1][name] for name in counted]


@pytest.mark.gpu
def test_phases_on_cuda_add_up_to_the_wall_time(make: Make) -> None:
    trainer = make(steps=20, log_interval=10, device="cuda")
    trainer.run()
    row = rows(trainer)[-1]
    phases = {name: value for name, value in row.items() if name.startswith("phase_")}
    assert sum(phases.values()) == pytest.approx(row["wall_s"], rel=0.02)
    assert min(phases[f"phase_{name}_s"] for name in ("forward", "backward", "opt_step")) > 0
    assert 0 < row.get("mfu", 0.1) < 1
