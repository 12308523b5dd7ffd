"""Compiling in shares: each configuration lands in one, what fails is passed over and counted, and the limit holds."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"


@pytest.fixture
def peers_compile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("peers_compile")


class Kernel:
    """A jitted function that notes what it was asked for; `broken` do not compile, `wide` can not be launched."""

    def __init__(self, broken: set[int], wide: set[int]) -> None:
        self.broken, self.wide = broken, wide
        self.compiled: list[int] = []
        self.launched: list[int] = []

    def run(self, x: object, *, grid: object, warmup: bool, tile: int, **options: object) -> str:
        from triton.runtime.errors import OutOfResources, PTXASError

        assert (grid, options) == ((1,), {"num_warps": 4, "num_ctas": 1, "num_stages": 3})
        if tile in self.broken:
            raise PTXASError("too many registers")
        self.compiled.append(tile)
        if not warmup and tile in self.wide:
            raise OutOfResources(300_000, 232_448, "shared memory")
        if not warmup:
            self.launched.append(tile)
        return f"tile {tile}"


def tuner_of(count: int, *, name: str = "kernel", broken: set[int] | None = None, wide: set[int] | None = None) -> Any:
    """An autotuner over the tiles 0 to count - 1, of which the last one is pruned away."""
    from triton.runtime.autotuner import Autotuner, Config

    def kernel(x: object, tile: int) -> None:
        """Only its name counts."""

    kernel.__name__ = name
    configs = [Config({"tile": tile}, num_warps=4) for tile in range(count)]
    prune = {"early_config_prune": lambda configs, nargs, **given: configs[:-1]}
    tuner = Autotuner(SimpleNamespace(fn=kernel), ["x", "tile"], configs, [], None, None, prune_configs_by=prune)
    tuner.fn = Kernel(broken or set(), wide or set())
    return tuner


def run(share: Any, tuner: Any) -> Any:
    return share.run(tuner, "x", grid=(1,), warmup=False)


@pytest.mark.parametrize("jobs", [1, 4, 5, 14, 40])
def test_every_configuration_lands_in_exactly_one_share(peers_compile: Any, jobs: int) -> None:
    kernels = {"angles": 9, "forward": 27, "gate": 54, "steps": 81}
    found: Counter[tuple[str, int]] = Counter()
    sizes = []
    for index in range(jobs):
        share = peers_compile.Share(index, jobs)
        own = [(name, k) for name, count in kernels.items() for k in share.of(list(range(count)))]
        found.update(own)
        sizes.append(len(own))
    assert found == Counter((name, k) for name, count in kernels.items() for k in range(count))
    assert max(sizes) - min(sizes) <= 1, "dealt on from kernel to kernel"


def test_a_share_compiles_its_own_and_launches_one_of_them(peers_compile: Any, capsys: Any) -> None:
    tuner = tuner_of(8)
    assert run(peers_compile.Share(1, 3), tuner) == "tile 1"
    assert tuner.fn.compiled == [1, 4, 1]
    assert tuner.fn.launched == [1]
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["kernel"], row["of"], row["error"]) for row in rows] == [("kernel", 7, "")] * 2
    assert tuner.cache == {}, "nothing is chosen"


def test_what_does_not_compile_or_fit_is_passed_over(peers_compile: Any, capsys: Any) -> None:
    tuner = tuner_of(8, broken={1}, wide={4})
    assert run(peers_compile.Share(1, 3), tuner) == "tile 0", "the share has nothing that can be launched"
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["PTXASError" in row["error"] for row in rows] == [True, False]


def test_a_share_without_a_configuration_still_launches_one(peers_compile: Any) -> None:
    tuner = tuner_of(3)
    assert run(peers_compile.Share(5, 14), tuner) == "tile 0"
    assert tuner.fn.launched == [0]


def test_the_autotuner_is_replaced_for_the_chosen_case_alone(
    peers_compile: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.autotuner import Autotuner

    registry, tuner = importlib.import_module("registry"), tuner_of(3)

    def case(shape: str, provider: str, direction: str) -> Any:
        called = provider == "mamba3-official" and direction == "forward+backward" and shape == "B8 T4096 H32"
        function = (lambda: tuner.run("x", grid=(1,), warmup=False)) if called else (lambda: 1 // 0)
        return registry.Case(shape, "bfloat16", provider, direction, 1, function)

    group = [
        case(shape, provider, direction)
        for shape in ("B8 T4096 H32", "B8 T2048 H64")
        for provider in ("sigma", "mamba3-official")
        for direction in ("forward", "forward+backward")
    ]
    monkeypatch.setattr(registry, "load", lambda: {"scan": lambda: iter([group])})
    monkeypatch.setattr(Autotuner, "run", Autotuner.run)
    monkeypatch.setattr(peers_compile.torch.cuda, "synchronize", lambda: None)
    peers_compile.compile_share(peers_compile.Share(1, 2), "T4096")
    assert tuner.fn.compiled == [1, 1]
    with pytest.raises(SystemExit, match="no case of scan matches T8"):
        peers_compile.compile_share(peers_compile.Share(1, 2), "T8")


def test_a_kernel_that_can_not_be_launched_at_all_ends_the_share(peers_compile: Any) -> None:
    with pytest.raises(RuntimeError, match="no configuration of kernel can be launched"):
        run(peers_compile.Share(0, 1), tuner_of(3, broken={0}, wide={1}))


def test_any_other_error_ends_the_share(peers_compile: Any) -> None:
    tuner = tuner_of(3)
    tuner.fn.run = lambda *args, **kwargs: 1 // 0
    with pytest.raises(ZeroDivisionError):
        run(peers_compile.Share(0, 1), tuner)


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_the_limit_ends_what_is_left_and_keeps_what_was_reported(peers_compile: Any, tmp_path: Path) -> None:
    row = {"kernel": "k", "config": "c", "of": 3, "seconds": 1.5, "error": ""}
    slow = f"import time; print({json.dumps(row)!r}, flush=True); print('{{', end='', flush=True); time.sleep(60)"
    checks = "import os; assert os.environ['TRITON_CACHE_AUTOTUNING'] == '0'"
    started = time.monotonic()
    ends = peers_compile.run_all([python(slow), python(checks), python("raise SystemExit(3)")], tmp_path, 2.0)
    assert ends == ["not done", "ended with 0", "ended with 3"]
    assert time.monotonic() - started < 30
    assert peers_compile.rows_of(tmp_path) == [row]


def test_the_summary_counts_what_compiled_and_why_the_rest_did_not(peers_compile: Any) -> None:
    row = {"kernel": "k", "config": "c", "of": 3, "seconds": 1.5, "error": ""}
    lines = peers_compile.summary([row, row | {"error": "PTXASError: no"}, row, row | {"kernel": "other", "of": 1}])
    assert lines == [
        "k: 2 of 3 configurations compiled, 1 cannot be, 4.5 s",
        "    1 x PTXASError: no",
        "other: 1 of 1 configurations compiled, 0 cannot be, 1.5 s",
    ]


@pytest.mark.parametrize("ends, code", [(["ended with 0"] * 2, 0), (["ended with 0", "not done"], 1)])
def test_the_script_starts_every_share_and_fails_with_any(
    peers_compile: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, ends: list[str], code: int
) -> None:
    def run_all(commands: list[list[str]], folder: Path, limit_s: float) -> list[str]:
        asked = [peers_compile.options().parse_args(command[2:]) for command in commands]
        assert [(a.share, a.jobs, a.shape) for a in asked] == [(0, 2, "T4096"), (1, 2, "T4096")]
        assert limit_s == 7
        (folder / "1.said").write_text("why\n")
        return ends

    monkeypatch.setattr(peers_compile, "run_all", run_all)
    monkeypatch.setattr(peers_compile, "require_cuda", lambda: None)
    assert peers_compile.main(["--shape", "T4096", "--jobs", "2", "--limit-s", "7"]) == code
    assert ("share 1 not done\n    why" in capsys.readouterr().out) is (code == 1)
