"""`sigma tune` searches what a run launches, and keeps what it found."""

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch

from sigma.config.parse import parse
from sigma.config.presets import resolve_parsed
from sigma.core.errors import ConfigError, MissingRequirementError
from sigma.optim.routing import Route
from sigma_app.__main__ import main
from sigma_app.tune_command import MOST_ELEMENTS, matrix_shapes, tunables_of, tune
from sigma_kernels import dispatch, tuned
from sigma_kernels.tuning import Tunable


@pytest.fixture(autouse=True)
def empty(tmp_path):
    """No rows before and after."""
    tuned.load(tmp_path / "none")
    yield
    tuned.load(tmp_path / "none")


def two_speeds(key: str) -> Tunable:
    return Tunable("op", key, {"warps": 4}, {"warps": [4, 8]}, lambda: [torch.ones(1)])


def speed(key: str):
    """A clock to which eight warps are twice as fast."""

    def clock(call):
        found = tuned.settings("op", key)
        assert found is not None
        return 4.0 / found["warps"]

    return clock


def test_what_was_found_is_said_and_saved(tmp_path):
    pytest.importorskip("triton")
    lines = []
    tune([partial(two_speeds, "a")], tmp_path / "tuned.json", 1.0, lines.append, speed("a"))
    assert lines[-2:] == ["op a: 1.000 -> 0.500 ms", f"later starts use {tmp_path / 'tuned.json'}"]
    tuned.load(tmp_path / "none")
    assert tuned.load(tmp_path / "tuned.json") == 1
    assert tuned.settings("op", "a") == {"warps": 8}


def test_what_won_before_an_interruption_is_kept(tmp_path):
    pytest.importorskip("triton")
    tunable = Tunable("op", "a", {"warps": 4}, {"warps": [8, 16]}, lambda: [torch.ones(1)])

    def clock(call):
        if tuned.settings("op", "a") == {"warps": 16}:
            raise KeyboardInterrupt
        return speed("a")(call)

    with pytest.raises(KeyboardInterrupt):
        tune([lambda: tunable], tmp_path / "tuned.json", 1.0, lambda line: None, clock)
    assert tuned.load(tmp_path / "tuned.json") == 1
    assert tuned.settings("op", "a") == {"warps": 8}


@pytest.mark.parametrize("name", ["file/tuned.json", "folder", ""])
def test_a_table_that_cannot_be_written_ends_it_before_the_search(name, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="SIGMA_TUNED_TABLE: cannot write"):
        tune([partial(two_speeds, "a")], Path(name), 1.0, lambda line: None, lambda call: pytest.fail("it searched"))


def test_without_kernels_there_is_nothing_to_tune():
    config = resolve_parsed(parse(["--device", "cpu", "--preset", "demo"]), None).config
    with pytest.raises(MissingRequirementError, match="no launches to tune: "):
        tunables_of(config, torch.device("cpu"))


def test_when_its_time_is_over_it_says_that_not_everything_was_tried(tmp_path, monkeypatch):
    minutes = itertools.count(step=60.0)
    monkeypatch.setattr("time.monotonic", lambda: float(next(minutes)))
    lines = []
    tune([partial(two_speeds, "a")], tmp_path / "tuned.json", 0.5, lines.append, speed("a"))
    assert tuned.settings("op", "a") == {"warps": 4}
    assert "the 0.5 minutes are over, not every candidate was tried" in lines[-1]


def test_an_op_with_many_candidates_leaves_the_next_one_its_share(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    seconds = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])

    def clock(call):
        seconds[0] += 10
        return 1.0

    many = Tunable("op", "many", {"warps": 0}, {"warps": list(range(1, 100))}, lambda: [torch.ones(1)])
    lines = []
    tune([lambda: many, partial(two_speeds, "few")], tmp_path / "tuned.json", 1.0, lines.append, clock)
    tried = [line for line in lines if line.startswith("  warps")]
    assert tried == [f"  warps {n} in place of 0: 1.000 ms" for n in (1, 2)] + ["  warps 8 in place of 4: 1.000 ms"]


def test_a_run_is_tuned_for_its_own_sizes(monkeypatch):
    monkeypatch.setattr(dispatch, "interpreting", lambda: True)
    argv = [
        "--device",
        "cpu",
        "--preset",
        "demo",
        "--optimizer",
        "normuon",
        "--seq-len",
        "16",
        "--micro-batch-size",
        "1",
    ]
    config = resolve_parsed(parse(argv), None).config
    scan, *products = (make() for make in tunables_of(config, torch.device("cpu")))
    assert scan.op == "scan"
    assert scan.key == "sm_90 P64 N64 R2 32 bits"
    assert {p.op for p in products} == {"orthogonalise"}
    assert len({p.key for p in products}) == len(products) > 1
    adamw = resolve_parsed(parse([*argv, "--optimizer", "adamw"]), None).config
    assert [make().op for make in tunables_of(adamw, torch.device("cpu"))] == ["scan"]


def test_of_matrices_with_about_as_many_rows_those_with_the_most_elements_are_taken():
    def of(name, shape, owner="matrix", splits=()):
        return Route(name, shape, "hidden", owner, 0.1, 0.0, splits)

    routes = [
        of("a", (64, 100)),
        of("b", (60, 300)),
        of("fused", (96, 100), splits=(64, 32)),
        of("experts", (8, 100, 48)),
        of("head", (9000, 100), owner="adamw"),
        of("wide", (4096, 1 << 14)),
    ]
    assert matrix_shapes(routes) == [(1, 32, 100), (8, 48, 100), (MOST_ELEMENTS >> 26 or 1, 4096, 1 << 14)]


def test_without_a_gpu_it_ends_with_3(home, capsys):
    assert main(["tune", "--minutes", "1"]) == 3
    assert "--require-cuda" in capsys.readouterr().err
