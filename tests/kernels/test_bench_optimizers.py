"""The plan of the optimizer benchmark: what is run next follows from the log and the registered rules alone."""

from __future__ import annotations

import importlib
import json
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sigma.config.parse import parse

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The plan and the report."""
    monkeypatch.syspath_prepend(str(BENCH))
    names = ("optim", "optim_report")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def loss(run: Any) -> float:
    """A bowl over the rates: the best of normuon is inside the grid, that of every other one above it."""
    best = 2e-2 if run.contender == "normuon" else 8e-2
    return 2.0 + (run.lr / best - 1) ** 2 + 0.01 * run.seed


def row_of(run: Any, **changes: Any) -> dict[str, Any]:
    own = {
        "run": vars(run), "status": "ok", "val_loss": loss(run), "step_ms": 10.0, "opt_step_ms": 1.0,
        "features_ms": 0.5, "state_bytes_per_parameter": 4.0, "device": "CPU", "torch": "2", "commit": "abc",
        "steps": 100, "tokens": 102400, "parameters": 1000,
    }  # fmt: skip
    return own | changes


def carry_out(optim: Any, tier: str = "S") -> dict[Any, dict[str, Any]]:
    rows: dict[Any, dict[str, Any]] = {}
    while (run := next(optim.missing(tier, rows), None)) is not None:
        assert run not in rows, "nothing is run twice"
        rows[run] = row_of(run)
    return rows


def test_every_registered_run_is_a_valid_configuration(bench: SimpleNamespace) -> None:
    for tier in bench.optim.TIERS:
        for name in [*bench.optim.CONTENDERS, *bench.optim.PLACEBOS]:
            run = bench.optim.Run(tier, name, 0.01, 0.1, 3)
            config = parse(run.flags.split()).config
            assert (config.train.lr, config.train.weight_decay, config.run.seed) == (0.01, 0.1, 3)
            assert config.c3o.c3o_credit_enabled is name.startswith("c3o")


def test_the_plan_is_the_grid_then_the_edges_then_the_seeds_of_the_best_cell_then_the_placebos(
    bench: SimpleNamespace,
) -> None:
    rows = carry_out(bench.optim)
    by_name: dict[str, list[Any]] = {}
    for run in rows:
        by_name.setdefault(run.contender, []).append(run)
    assert set(by_name) == {*bench.optim.CONTENDERS, *bench.optim.PLACEBOS}
    assert [(r.lr, r.seed) for r in by_name["normuon"]] == [(1e-2, 0), (2e-2, 0), (4e-2, 0), (2e-2, 1), (2e-2, 2)]
    assert [(r.lr, r.seed) for r in by_name["muon"]] == [
        (1e-2, 0), (2e-2, 0), (4e-2, 0), (8e-2, 0), (1.6e-1, 0), (8e-2, 1), (8e-2, 2),
    ]  # fmt: skip
    assert [(r.lr, r.seed) for r in by_name["normuon-random-shares"]] == [(2e-2, 0), (2e-2, 1), (2e-2, 2)]


def test_a_tier_runs_its_own_contenders_at_their_rates(bench: SimpleNamespace) -> None:
    rows = carry_out(bench.optim, "A")
    assert {run.contender for run in rows} == {"adamw", "normuon", "soapmuon", "c3o", "gnprox"}
    assert [run.lr for run in bench.optim.grid("A", "adamw")] == [6.25e-4, 1.25e-3, 2.5e-3]
    assert [run.lr for run in bench.optim.grid("A", "normuon")] == [2.5e-3, 5e-3, 1e-2]


def test_what_a_tier_does_not_run_is_refused_and_not_taken_for_done(
    bench: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("c3o-soapmuon", "gnprox-text-labels"):
        with pytest.raises(SystemExit) as stopped:
            bench.optim.main(["--tier", "A", "--only", name, "--plan", "--log", str(tmp_path / "runs.jsonl")])
        assert stopped.value.code == 2
        assert f"--only {name}: tier A does not run it" in capsys.readouterr().err


def test_a_run_that_failed_is_worse_than_any_other_and_is_not_run_again(bench: SimpleNamespace) -> None:
    optim, rows = bench.optim, {}
    for run in optim.grid("S", "muon"):
        rows[run] = row_of(run, status="RuntimeError: x", val_loss=None) if run.lr > 1e-2 else row_of(run)
    assert optim.best_cell("S", "muon", rows).lr == 1e-2
    assert all(run not in rows for run in optim.missing("S", rows, "muon"))


def test_a_budget_stops_before_the_first_run(bench: SimpleNamespace, tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    assert bench.optim.main(["--tier", "S", "--budget-s", "-1", "--log", str(log)]) == 1
    assert not log.exists()


def test_the_log_brings_the_plan_back(bench: SimpleNamespace, tmp_path: Path) -> None:
    rows, log = carry_out(bench.optim), tmp_path / "runs.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    assert bench.optim.read_log(log) == rows
    assert bench.optim.main(["--tier", "S", "--log", str(log)]) == 0


def test_the_report_holds_every_contender_and_a_picture(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "optimizers.md"
    page.write_text("before\n<!-- tier S -->\nold\n<!-- end of tier S -->\nafter\n")
    monkeypatch.setattr(bench.optim_report, "PAGE", page)
    monkeypatch.setattr(bench.optim_report, "IMAGES", tmp_path)
    bench.optim_report.write_report(list(carry_out(bench.optim).values()))
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    for name in [*bench.optim.CONTENDERS, *bench.optim.PLACEBOS]:
        assert f"| {name} |" in text
    assert "+0.0000 ± 0.0000" in text, "equal bowls differ by nothing"
    xml.etree.ElementTree.parse(tmp_path / "optimizers_S.svg")


def test_a_paired_difference_has_students_interval(bench: SimpleNamespace) -> None:
    found = bench.optim_report.difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 1.5, 2: 2.25})
    assert found == "+0.7500 ± 0.6211"  # sd 0.25, t 4.303 for two degrees of freedom


def test_times_come_from_timing_runs_and_never_from_runs_beside_others(bench: SimpleNamespace) -> None:
    run = bench.optim.Run("S", "muon", 0.01, 0.1, 0)
    timing, old = bench.optim_report.timing, row_of(run)
    beside = row_of(run, jobs=8, step_ms=99.0)
    short = row_of(run, jobs=1, kind="timing", step_ms=7.0, opt_step_ms=2.0)
    assert timing([beside, old], "muon") == (10.0, 1.5), "a row without `jobs` was alone"
    assert timing([beside, old, row_of(run, jobs=1), short], "muon") == (7.0, 2.5)
    assert timing([beside], "muon") is None
    assert timing([beside, {**short, "status": "RuntimeError: x"}], "muon") is None
    line = bench.optim_report.table([beside])[2]
    assert line.endswith("| - | - | 4.0 |")
    assert bench.optim_report.table([beside], [short])[2].endswith("| 7 | 2 | 4.0 |")


def test_a_timing_run_is_no_result(bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, page = bench.optim.Run("S", "normuon", 0.01, 0.1, 0), tmp_path / "optimizers.md"
    page.write_text("<!-- tier S -->\n\n<!-- end of tier S -->")
    monkeypatch.setattr(bench.optim_report, "PAGE", page)
    monkeypatch.setattr(bench.optim_report, "IMAGES", tmp_path)
    log = tmp_path / "runs.jsonl"
    rows = [row_of(run, val_loss=2.5, jobs=4), row_of(run, val_loss=9.0, kind="timing", commit="fed", steps=120)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bench.optim.main(["--report", "--log", str(log)]) == 0
    text = page.read_text()
    assert "1 runs (0 failed)" in text
    assert "alone, commit fed." in text
    assert "| normuon | 0.01 | 0.1 | 1 | 2.5000 | - | 10 | 2 | 4.0 |" in text


def test_the_page_is_what_the_log_says(bench: SimpleNamespace) -> None:
    page = bench.optim_report.PAGE.read_text()
    for tier in bench.optim.TIERS:
        rows, timings = (
            [row for run, row in bench.optim.read_log(kind=kind).items() if run.tier == tier]
            for kind in ("run", "timing")
        )
        assert bench.optim_report.section(tier, rows, timings) in page


def test_a_placebo_trains_and_a_shorter_run_has_batches_of_its_own(bench: SimpleNamespace) -> None:
    execute = importlib.import_module("optim_run").execute
    flags = bench.optim.Run("S", "normuon-random-shares", 0.01, 0.1, 0).flags + " --val-max-tokens 1024"
    for steps in (3, 2):
        row = execute(f"{flags} --steps {steps}", random_shares=0.3, warm_up=1)
        assert (row["status"], row["steps"]) == ("ok", steps)
