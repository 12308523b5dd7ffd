"""Several runs of the optimizer benchmark at a time: each once, in the order of the rules, in time or not at all."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
FAKE = '''
"""In place of optim_run: a bowl over the rates, or what a rate of a contender is given instead."""
import os, time
def execute(flags, random_shares=0.0, warm_up=10):
    words = flags.split()
    given = lambda name: words[len(words) - 1 - words[::-1].index(name) + 1]
    lr, seed, name = float(given("--lr")), int(given("--seed")), given("--optimizer")
    if name == "adamuon" and lr == 0.02:
        {instead}
    loss = 2 + (lr / (0.02 if name == "normuon" else 0.08) - 1) ** 2 + 0.01 * seed
    return {{"status": "ok", "val_loss": loss, "seconds": 0.0, "flags": flags, "pid": os.getpid(), "warm_up": warm_up}}
'''


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The plan, the pool, a log, and `fake(instead)`, which writes what runs in place of a training."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "optim_run", raising=False)

    def fake(instead: str = "pass") -> None:
        (tmp_path / "optim_run.py").write_text(FAKE.format(instead=instead))

    fake()
    optim, jobs = importlib.import_module("optim"), importlib.import_module("optim_jobs")
    yield SimpleNamespace(optim=optim, jobs=jobs, log=tmp_path / "runs.jsonl", fake=fake)
    sys.modules.pop("optim_run", None)
    assert not multiprocessing.active_children(), "no worker is left behind"


def rows_of(bench: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.log.read_text().splitlines()] if bench.log.exists() else []


def carry_out(bench: Any, *flags: str) -> int:
    return bench.optim.main(["--tier", "S", "--log", str(bench.log), *flags])


class Inline:
    """A worker without a process; it begins when its row is asked for."""

    begun: list[Any] = []  # noqa: RUF012

    def __init__(self, threads: int) -> None:
        self.run, self.since, self.pipe = None, 0.0, self

    def take(self, run: Any, arguments: dict[str, Any]) -> None:
        self.run, self._arguments = run, arguments
        self.since = importlib.import_module("optim_jobs").time.monotonic()
        Inline.begun.append(run)

    def row(self) -> dict[str, Any]:
        return importlib.import_module("optim_run").execute(**self._arguments)

    def end(self) -> None: ...


def test_no_run_is_handed_out_twice_and_every_rule_waits_for_what_it_needs(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert carry_out(bench) == 0
    alone = {json.dumps(row["run"]) for row in rows_of(bench)}
    bench.log.unlink()
    Inline.begun = []
    monkeypatch.setattr(bench.jobs, "Worker", Inline)
    monkeypatch.setattr(bench.jobs, "wait", lambda workers, timeout: [max(workers, key=newest)])
    assert carry_out(bench, "--jobs", "8") == 0
    begun = Inline.begun
    assert len(begun) == len(set(begun))
    assert {json.dumps(vars(run)) for run in begun} == alone, "the rules ask for the same runs"
    assert {row["jobs"] for row in rows_of(bench)} == {8}
    grids = 3 * len(bench.optim.CONTENDERS)
    assert begun[:grids] == [run for name in bench.optim.CONTENDERS for run in bench.optim.grid("S", name)]


def newest(worker: Inline) -> int:
    return Inline.begun.index(worker.run)


def test_a_placebo_waits_for_the_edge_of_what_it_imitates(bench: Any) -> None:
    optim = bench.optim
    rows = {run: {"status": "ok", "val_loss": 1 / run.lr} for run in optim.grid("S", "normuon")}
    asked = list(optim.missing("S", rows, "normuon-random-shares"))
    assert optim.beyond_edge("S", "normuon", rows) is not None
    assert not asked


def test_jobs_are_processes_of_their_own_and_the_rows_say_how_many(bench: Any) -> None:
    bench.fake("pass\n    time.sleep(0.2)")
    assert carry_out(bench, "--only", "normuon", "--jobs", "2") == 0
    rows = rows_of(bench)
    assert len(rows) == 5
    pids = {row["pid"] for row in rows}
    assert len(pids) == 2, "a worker takes one run after the other"
    assert multiprocessing.current_process().pid not in pids
    assert bench.optim.read_log(bench.log).keys() == {bench.optim.Run(**row["run"]) for row in rows}


def test_one_job_is_carried_out_in_this_process_and_with_a_stop_in_one_other(bench: Any) -> None:
    assert carry_out(bench, "--only", "normuon") == 0
    assert {row["pid"] for row in rows_of(bench)} == {multiprocessing.current_process().pid}
    bench.log.unlink()
    assert carry_out(bench, "--only", "normuon", "--stop-s", "60") == 0
    assert multiprocessing.current_process().pid not in {row["pid"] for row in rows_of(bench)}
    assert {row["jobs"] for row in rows_of(bench)} == {1}


def test_a_stop_abandons_what_is_under_way_and_keeps_what_was_finished(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    bench.fake("time.sleep(600)")
    left = lambda limits: 0.0 if len(rows_of(bench)) == 2 else None  # noqa: E731
    monkeypatch.setattr(bench.jobs.Limits, "left", left)
    assert carry_out(bench, "--only", "adamuon", "--jobs", "2", "--stop-s", "600") == 1
    assert [row["run"]["lr"] for row in rows_of(bench)] == [0.01, 0.04]
    assert "lr=0.02" in capsys.readouterr().err


def test_time_that_is_left_and_room_for_one_more(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(monotonic=lambda: 104.0)
    monkeypatch.setattr(bench.jobs, "time", now)
    limits = bench.jobs.Limits(stop_s=10.0, started=100.0)
    limits.latest.extend([100.0, 6.0] + [1.0] * (bench.jobs.LATEST - 1))  # the first was long ago
    assert (limits.left(), limits.room()) == (6.0, True)
    now.monotonic = lambda: 105.0
    assert (limits.left(), limits.room()) == (5.0, False), "a run that would be abandoned is not started"
    now.monotonic = lambda: 111.0
    assert limits.left() == 0.0
    assert bench.jobs.Limits().left() is None


def test_a_budget_starts_no_run_that_would_not_end_in_time(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.jobs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(bench.jobs, "Worker", Inline)

    def ten_seconds_later(workers: list[Inline], timeout: float | None) -> list[Inline]:
        now[0] += 10.0
        return workers

    monkeypatch.setattr(bench.jobs, "wait", ten_seconds_later)
    for budget, finished in ((-1.0, 0), (9.0, 2), (19.0, 2), (20.0, 4)):
        limits = bench.jobs.Limits(budget_s=budget, started=now[0])
        bench.log.unlink(missing_ok=True)
        assert bench.jobs.Pool(bench.optim.Registered("S", None, bench.log, 2), 2, limits).carry_out() == 1
        assert len(rows_of(bench)) == finished, "what is under way is waited for"


def test_one_by_one_too_no_run_is_started_that_would_not_end_in_time(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.jobs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    execute = importlib.import_module("optim_run").execute

    def ten_seconds_long(**arguments: Any) -> dict[str, Any]:
        now[0] += 10.0
        return execute(**arguments)

    monkeypatch.setattr("optim_run.execute", ten_seconds_long)
    plan = bench.optim.Registered("S", None, bench.log)
    assert bench.jobs.one_by_one(plan, bench.jobs.Limits(budget_s=29.0, started=0.0)) == 1
    assert len(rows_of(bench)) == 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_failed_early_says_nothing_about_the_length_of_the_next(
    bench: Any, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(bench.jobs, "Worker", Inline)
    monkeypatch.setattr(bench.jobs, "wait", lambda workers, timeout: workers)
    bench.fake('return {"status": "RuntimeError: CUDA error", "seconds": 0.0}')
    limits, plan = bench.jobs.Limits(), bench.optim.Registered("S", "adamuon", bench.log, jobs)
    assert (bench.jobs.one_by_one(plan, limits) if jobs == 1 else bench.jobs.Pool(plan, jobs, limits).carry_out()) == 0
    whole = [row for row in rows_of(bench) if row["status"] == "ok"]
    assert len(limits.latest) == len(whole) < len(rows_of(bench))


@pytest.mark.parametrize(
    "instead, why",
    [
        ("os._exit(7)", "exit code 7"),
        ("os.kill(os.getpid(), 9)", "exit code -9"),
        ('return {"status": "OutOfMemoryError: CUDA out of memory", "seconds": 0.0}', "out of memory"),
    ],
    ids=["exits", "is killed", "has no memory"],
)
def test_a_lost_run_is_told_has_no_row_and_the_others_go_on(bench: Any, capsys: Any, instead: str, why: str) -> None:
    bench.fake(instead)
    assert carry_out(bench, "--only", "adamuon", "--jobs", "2") == 2
    assert [row["run"]["lr"] for row in rows_of(bench)] == [0.01, 0.04]
    told = capsys.readouterr().err
    assert "lr=0.02" in told
    assert why in told


def test_without_any_worker_left_the_program_ends(bench: Any, capsys: Any) -> None:
    bench.fake("os._exit(7)")
    assert carry_out(bench, "--only", "adamuon", "--stop-s", "60") == 2
    assert [row["run"]["lr"] for row in rows_of(bench)] == [0.01]


def test_an_error_is_a_row_and_its_process_is_not_used_again(bench: Any) -> None:
    bench.fake('return {"status": "RuntimeError: CUDA error", "seconds": 0.0, "pid": os.getpid()}')
    assert carry_out(bench, "--only", "adamuon", "--stop-s", "60") == 0
    rows = rows_of(bench)
    failed = next(index for index, row in enumerate(rows) if row["status"] != "ok")
    assert rows[failed]["pid"] == rows[failed - 1]["pid"]
    assert rows[failed]["pid"] not in {row["pid"] for row in rows[failed + 1 :]}


def test_times_are_taken_once_of_the_best_cell_in_rows_of_their_own_kind(bench: Any) -> None:
    assert carry_out(bench) == 0
    before = bench.optim.read_log(bench.log)
    assert carry_out(bench, "--time", "--plan") == 1
    assert carry_out(bench, "--time") == 0
    assert carry_out(bench, "--time", "--plan") == 0
    timed = [row for row in rows_of(bench) if row.get("kind") == "timing"]
    names = [*bench.optim.CONTENDERS, *bench.optim.PLACEBOS]
    assert [row["run"]["contender"] for row in timed] == names
    assert all(row["flags"].endswith(f"--steps {bench.optim.TIMING_STEPS}") and row["jobs"] == 1 for row in timed)
    assert {row["warm_up"] for row in timed} == {bench.optim.TIMING_WARM_UP}
    assert timed[names.index("normuon")]["run"] | {"lr": 0.02, "seed": 0} == timed[names.index("normuon")]["run"]
    assert bench.optim.read_log(bench.log) == before, "the plan does not see them"
    with pytest.raises(SystemExit):
        carry_out(bench, "--time", "--jobs", "2")
