"""The benchmark scripts: every op's file is found, and nothing is recorded where nothing can be measured."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "kernels" / "bench"


MODULES = ("first_step", "floors", "plot", "registry", "run", "table", "timing")


@pytest.fixture
def bench(monkeypatch) -> SimpleNamespace:
    """The modules of kernels/bench, which are found beside each other when its scripts run."""
    monkeypatch.syspath_prepend(str(BENCH))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


@pytest.fixture
def device(bench, monkeypatch) -> SimpleNamespace:
    """A device on which a run takes as many milliseconds as it adds to `clock`; the log says what was done."""
    log, clock = [], [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = -1.0

        def record(self) -> None:
            self.at = clock[0]

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    def spend(name: str, ms: float):
        def run() -> None:
            log.append(name)
            clock[0] += ms

        return run

    flush = SimpleNamespace(zero_=lambda: log.append("flush"))
    cuda = SimpleNamespace(
        Event=Event, synchronize=lambda: log.append("wait"), reset_peak_memory_stats=lambda: None,
        memory_allocated=lambda: 0, max_memory_allocated=lambda: 3 << 20,
    )  # fmt: skip
    monkeypatch.setattr(bench.timing.torch, "cuda", cuda)
    monkeypatch.setattr(bench.timing.torch, "empty", lambda *size, **options: flush)
    return SimpleNamespace(log=log, spend=spend)


def start(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a script from the root as on_gpu.sh does, with any GPU hidden."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([".", "kernels", "app"])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def contents() -> dict[str, bytes]:
    return {
        name: (BENCH / name).read_bytes()
        for name in ("results.csv", "accuracy.csv", "gpu_tests.jsonl")
        if (BENCH / name).exists()
    }


def test_an_unknown_op_is_refused_and_every_file_in_ops_is_offered():
    result = start(sys.executable, "kernels/bench/run.py", "--op", "nothing")
    assert result.returncode == 2
    offered = [path.stem for path in (BENCH / "ops").glob("*.py")]
    assert offered
    assert [op for op in offered if op not in result.stderr] == []


@pytest.mark.parametrize("script", ["run.py", "gpu_tests.py", "scan_accuracy.py"])
def test_without_a_gpu_it_says_so_ends_with_3_and_records_nothing(script):
    before = contents()
    result = start(sys.executable, f"kernels/bench/{script}")
    assert result.returncode == 3
    assert "needs an NVIDIA GPU" in result.stdout
    assert contents() == before


@pytest.mark.skipif(os.name == "nt", reason="on_gpu.sh is for bash")
def test_an_unknown_set_fails_and_names_the_known_ones():
    result = start("bash", "kernels/bench/on_gpu.sh", "nothing")
    assert result.returncode == 1
    assert "known: tests, bench-<op>" in result.stderr


def test_floors_are_the_published_ones_of_the_standard_shape(bench):
    f, rates = bench.floors, bench.floors.Rates(4.3e12, 790e12)

    def microseconds(shape, direction):
        return 1e3 * f.floor_ms(f.scan_work(shape, direction), rates)

    standard = f.ScanShape(8, 4096, 32)
    assert microseconds(standard, "inference") == pytest.approx(99.5, abs=0.1)
    assert microseconds(standard, "forward") == pytest.approx(162, abs=0.5)
    assert microseconds(standard, "forward+backward") == pytest.approx(162 + 234, abs=1)
    assert microseconds(f.ScanShape(8, 4096, 32, rank=4), "inference") == pytest.approx(304, abs=1)  # products
    with pytest.raises(ValueError, match="direction"):
        f.scan_work(standard, "sideways")


def test_runs_take_turns_with_a_cold_cache_and_without_waiting(bench, device):
    fast, slow = bench.timing.interleave([device.spend("a", 1.0), device.spend("b", 3.0)], warm=1, timed=2)
    assert device.log == ["flush", "a", "flush", "b"] * 3 + ["wait"]
    assert (fast.median, slow.median, slow.turns) == (1.0, 3.0, 2)


def test_a_slow_run_is_timed_apart_and_less_often(bench, device):
    runs = [device.spend("slow", 500.0), device.spend("quick", 2.0)]
    slow, quick = bench.timing.time_group(runs, [0.5, 0.002])
    assert (slow.median, quick.median) == (500.0, 2.0)
    assert slow.turns < quick.turns
    last_quick = max(i for i, name in enumerate(device.log) if name == "quick")
    assert "slow" not in device.log[:last_quick]


def test_deciles(bench):
    times = bench.timing.summarize([float(i) for i in range(101)][::-1])
    assert (times.p10, times.median, times.p90, times.turns) == (10.0, 50.0, 90.0, 101)


def case(bench, provider="sigma", **changes):
    fields = {
        "shape": "B1", "dtype": "bfloat16", "provider": provider, "direction": "forward", "bytes": 4_000_000,
        "run": lambda: None,
    }  # fmt: skip
    return bench.registry.Case(**(fields | changes))


def test_a_row_says_time_memory_and_share_of_the_floor(bench, device):
    work = (bench.floors.Work(bytes=4_000_000, flops=0), bench.floors.Work(bytes=0, flops=10**9))
    one = case(bench, run=device.spend("run", 8.0), work=work)
    (row,) = bench.run.measure("scan", [one], 4000.0, bench.floors.Rates(4e9, 1e12), [])
    assert row["ms"] == "8.0000"
    assert row["percent_of_floor"] == "25.0"  # 1 ms for the bytes of the first phase, 1 ms for the products after it
    assert row["gb_per_s"] == "0"
    assert row["peak_mib"] == "3"
    assert set(row) < set(bench.table.COLUMNS)


def test_what_is_missing_or_breaks_is_named_and_the_others_are_measured(bench, device, capsys):
    def missing():
        raise bench.registry.Skip("not carried")

    def broken():
        raise AssertionError("P must be even")

    failed = []
    group = [case(bench, "absent", setup=missing), case(bench, "odd", run=broken), case(bench, run=device.spend("", 1))]
    rows = bench.run.measure("scan", group, 4000.0, bench.floors.Rates(4e12, 8e14), failed)
    assert [row["provider"] for row in rows] == ["sigma"]
    assert [case.provider for case in failed] == ["odd"]
    printed = capsys.readouterr().out
    assert "skipped B1 absent forward: not carried" in printed
    assert "failed B1 odd forward: AssertionError: P must be even" in printed


def test_a_run_appends_each_group_and_ends_with_1_when_a_case_broke(bench, device, monkeypatch):
    def broken():
        raise RuntimeError("no such kernel")

    cases = [[case(bench, run=device.spend("run", 2.0)), case(bench, "peer", run=device.spend("peer", 4.0))]]
    stored = []
    for name, value in {
        "load": lambda: {"scan": lambda: iter(cases)}, "require_cuda": lambda: None, "append": stored.append,
        "stamp": lambda: {"device": "GPU"}, "copy_bandwidth": lambda: 4e3, "device_rates": lambda gb_per_s: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(bench.run, name, value)
    assert bench.run.main(["--op", "scan"]) == 0
    assert [(row["provider"], row["ms"], row["device"]) for row in stored[0]] == [
        ("sigma", "2.0000", "GPU"),
        ("peer", "4.0000", "GPU"),
    ]
    assert bench.run.main(["--shape", "no such shape"]) == 1
    cases.append(case(bench, run=broken))
    assert bench.run.main([]) == 1


def test_filters_leave_groups_of_what_all_of_them_match(bench):
    cases = [
        [case(bench), case(bench, "peer"), case(bench, direction="forward+backward")],
        case(bench, shape="B2"),
    ]

    def left(*arguments):
        chosen = bench.run.options(["scan"]).parse_args(arguments)
        return [[(c.shape, c.provider, c.direction) for c in group] for group in bench.run.choose(cases, chosen)]

    assert [len(group) for group in left()] == [3, 1]
    assert left("--provider", "peer|other") == [[("B1", "peer", "forward")]]
    assert left("--shape", "B2", "--provider", "peer") == []
    assert left("--shape", "B1", "--direction", "^forward$", "--provider", "^s") == [[("B1", "sigma", "forward")]]


def test_an_error_is_filled_in_or_said_to_be_unknown(bench, capsys):
    def unknown():
        raise bench.registry.Skip("nothing exact to compare with")

    group = [case(bench, error=lambda: 0.00123), case(bench, "peer", error=unknown), case(bench, "third")]
    rows = [{"provider": c.provider, "direction": c.direction} for c in group]
    bench.run.add_errors(group, rows)
    assert [row.get("error") for row in rows] == ["1.23e-03", None, None]
    assert "no error for peer: nothing exact" in capsys.readouterr().out


def test_a_process_of_its_own_is_given_up_at_its_limit(bench, monkeypatch, capsys):
    popen = subprocess.Popen
    commands = []

    def sleeper(command):
        commands.append(command)
        return popen([sys.executable, "-c", "import time; time.sleep(60)"])

    monkeypatch.setattr(bench.run.subprocess, "Popen", sleeper)
    bench.run.measure_apart("scan", case(bench, "reference-compiled", limit_s=0.2, direction="forward+backward"))
    assert "skipped B1 reference-compiled forward+backward: not done after 0 s" in capsys.readouterr().out
    chosen = bench.run.options(["scan"]).parse_args(commands[0][2:])
    assert [len(g) for g in bench.run.choose([case(bench, "reference-compiled", direction="forward+backward")], chosen)]
    assert chosen.here


def test_an_empty_cache_is_a_new_folder_and_a_used_one_is_called_kept(bench, monkeypatch, tmp_path):
    (tmp_path / "kernel").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert bench.run.cache_state(empty=False) == "kept"
    monkeypatch.setattr(bench.run.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "new"))
    assert bench.run.cache_state(empty=True) == "empty"
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "new" / "TRITON_CACHE_DIR")


def test_an_older_table_gets_the_new_columns_and_keeps_its_rows(bench, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("op,ms\nrms_norm,1.5\n", encoding="utf-8")
    bench.table.append([{"op": "scan", "ms": "2.5", "error": "1e-3"}], path)
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(bench.table.COLUMNS)
    rows = bench.table.read(path)
    assert [(row["op"], row["ms"], row["error"]) for row in rows] == [("rms_norm", "1.5", ""), ("scan", "2.5", "1e-3")]


def test_a_table_with_an_unknown_column_is_left_alone(bench, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("op,watts\nscan,700\n", encoding="utf-8")
    with pytest.raises(ValueError, match="column watts"):
        bench.table.append([{"op": "scan"}], path)
    assert path.read_text(encoding="utf-8") == "op,watts\nscan,700\n"


def test_the_table_in_the_repository_has_the_columns_of_today(bench):
    assert bench.table.RESULTS.read_text(encoding="utf-8").splitlines()[0] == ",".join(bench.table.COLUMNS)
    assert all(float(row["ms"]) > 0 for row in bench.table.read())


def row(provider, ms, floor="", **changes):
    fields = {
        "op": "scan", "shape": "B8 T4096", "provider": provider, "direction": "forward", "ms": ms, "device": "GPU",
        "torch": "2", "triton": "3", "percent_of_floor": floor,
    }  # fmt: skip
    return fields | changes


def test_the_picture_shows_the_newest_row_of_everybody(bench):
    rows = [
        row("sigma", "9.0"), row("sigma", "0.5", "40"), row("mamba3-official", "1.5", "13"),
        row("reference-eager", "80.0"), row("sigma", "7.0", device="other"), row("sigma", "0.6", "40"),
    ]  # fmt: skip
    picture = bench.plot.draw(rows)
    words = [e.text for e in xml.etree.ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "0.6 ms" in words
    assert "1.5 ms, 2.5x" in words
    assert "80 ms (cut), 133x" in words
    assert not [w for w in words if w and w.startswith(("9", "7"))]
    assert "stroke=" in picture  # the floor


def test_no_picture_without_measurements(bench):
    with pytest.raises(ValueError, match="measure first"):
        bench.plot.draw([row("sigma", "1.0", op="rms_norm")])


def test_what_starting_costs_is_the_kernels_ahead_and_the_first_step_beyond_a_later_one_with_both_caches(
    bench, monkeypatch
):
    folders = []

    def in_a_process(flags, caches):
        folders.append((set(caches), [Path(folder).exists() for folder in caches.values()]))
        for folder in caches.values():
            Path(folder).mkdir(exist_ok=True)
        first = len(folders) == 1
        times = {"kernels_s": 6.0 if first else 0.25, "steps_s": [20.0 if first else 2.0, 0.5, 0.6]}
        return {**times, "kernels": 38 if first else 0, "longest_ms": 3.0}

    monkeypatch.setattr(bench.first_step, "in_a_process", in_a_process)
    found = bench.first_step.report("small")
    assert folders == [(set(bench.run.CACHES), [False, False]), (set(bench.run.CACHES), [True, True])]
    assert (found["empty_cache_start_s"], found["kept_cache_start_s"], found["step_s"]) == (25.5, 1.75, 0.5)
    assert (found["empty_cache_kernels_s"], found["kept_cache_kernels_s"]) == (6.0, 0.25)
    assert (found["preset"], found["kernels"], found["longest_ms"]) == ("small", 38, 3.0)
    assert "kernels_s" not in found


def test_the_longest_kernel_is_one_of_the_device(bench):
    cuda, cpu = bench.first_step.DeviceType.CUDA, bench.first_step.DeviceType.CPU
    events = [("a", cuda, 1500.0), ("host", cpu, 9e6), ("b", cuda, 2500.0)]
    made = [SimpleNamespace(name=name, device_type=kind, device_time=time) for name, kind, time in events]
    found = bench.first_step.longest_kernel(made)
    assert found == {"longest_kernel": "b", "longest_ms": 2.5, "kernels_of_a_step": 2}
