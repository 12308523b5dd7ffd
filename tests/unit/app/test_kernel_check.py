"""A start on a GPU says the result of a real kernel, and ends with 3 when it failed or computed something else."""

import sys
import types

import pytest
import torch

from sigma.config.parse import parse
from sigma.config.presets import resolve_parsed
from sigma.core.errors import MissingRequirementError
from sigma_app import kernel_check
from sigma_app.kernel_check import EPS, check_kernel, check_pipelines, scan_sizes, take_launches
from sigma_kernels import architecture, counters, dispatch, pipelining, tuned
from sigma_kernels.ahead import KernelsAhead
from sigma_kernels.rms_norm.reference import rms_norm_reference


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A device that computes on the CPU, and a kernel module whose `launch_forward` the test replaces."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(dispatch, "why_not_triton", lambda *_: None)
    kernel = types.ModuleType("sigma_kernels.rms_norm.kernel")
    monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
    return kernel


def right(x, weight, residual, eps):
    return (rms_norm_reference(x, weight, eps=eps), None, None)


def test_a_kernel_that_is_right_is_said_and_not_counted(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "launch_forward", right, raising=False)
    before = counters.get("rms_norm.forward")
    assert "a real one ran on a GPU and was right" in check_kernel()
    assert counters.get("rms_norm.forward") == before


def test_a_kernel_that_is_wrong_ends_the_start(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "launch_forward", lambda x, *_: (x / x.norm() + EPS, None, None), raising=False)
    with pytest.raises(MissingRequirementError, match="wrong numbers on a GPU") as caught:
        check_kernel()
    assert caught.value.exit_code == 3


def test_a_kernel_that_cannot_start_ends_the_start_with_its_words(gpu, monkeypatch):
    def fail(*_):
        raise RuntimeError("PTX version is too new")

    monkeypatch.setattr(gpu, "launch_forward", fail, raising=False)
    with pytest.raises(MissingRequirementError, match=r"PTX version is too new.*--selftest"):
        check_kernel()


def test_a_gpu_that_is_too_old_for_kernels_is_said_and_trains_with_the_references(gpu, monkeypatch):
    monkeypatch.setattr(dispatch, "why_not_triton", lambda *_: "compute capability 7.5 is below 8.0")
    assert "compute capability 7.5 is below 8.0; the slower references run" in check_kernel()


CPU = torch.device("cpu")


@pytest.fixture
def loops(monkeypatch):
    """What the pipelined loops of the scan compute is set by the test; those of the product are sound."""
    results = {"wrong": 0.0, "sizes": None}

    def scan(device, **sizes):
        results["sizes"] = sizes
        return [torch.ones(2) + (results["wrong"] if pipelining.is_on() else 0.0)]

    for name, function in (("scan", scan), ("orthogonalise", lambda device: [torch.ones(2)])):
        module = types.ModuleType(f"sigma_kernels.{name}.pipelined")
        module.pipelined_loops = module.pipelined_loop = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    yield results
    pipelining.switch(True)


def test_loops_that_agree_are_said_with_their_time_and_stay_pipelined(loops):
    assert check_pipelines(CPU, {"state": 64}).startswith("kernels     pipelined loops agree with plain ones (")
    assert pipelining.is_on()
    assert loops["sizes"] == {"state": 64}


def test_a_loop_that_is_compiled_wrongly_is_named_and_no_loop_is_pipelined_any_more(loops):
    loops["wrong"] = 0.5
    assert "pipelined loops of scan compute wrong numbers here: none is pipelined" in check_pipelines(CPU, {})
    assert pipelining.stages(3) == 1


def test_on_a_gpu_the_loops_are_compiled_both_ways_before_they_are_compared(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    from tests.kernels.fake_gpu import fake_gpu

    compiled = []
    monkeypatch.setattr(KernelsAhead, "_load", lambda self, kernel, specialization: compiled.append(kernel.fn.__name__))
    monkeypatch.setattr(pipelining, "check", lambda ops: [])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with fake_gpu(tmp_path):
        assert "agree" in check_pipelines(CPU, {})
    times = {name: compiled.count(name) for name in compiled if compiled.count(name) > 1}
    products = ["product_by_descriptors", "product_by_pointers"]
    assert sorted(name for name in times if times[name] == 2) == ["over_heads_kernel", *products]
    passes = ["border_pass_kernel", "segment_pass_kernel", "state_pass_backward_kernel", "state_pass_kernel"]
    assert sorted(name for name in times if times[name] == 4) == passes  # of one segment and of several, or both ways
    assert pipelining.is_on()


def test_a_later_start_compiles_only_loops_of_other_sizes_ahead(loops, tmp_path, monkeypatch):
    pytest.importorskip("triton")
    from tests.kernels.fake_gpu import fake_gpu

    rehearsed = []
    monkeypatch.setattr(pipelining, "both_ways", rehearsed.append)
    monkeypatch.setattr(pipelining, "check", lambda ops: [])
    with fake_gpu(tmp_path):
        for state, passes in ((64, 1), (64, 1), (32, 2)):
            check_pipelines(CPU, {"state": state})
            assert len(rehearsed) == passes


def test_a_loop_that_cannot_run_ends_the_start_with_its_words(loops, monkeypatch):
    def fail(ops):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(pipelining, "check", fail)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with pytest.raises(MissingRequirementError, match="out of resource: shared memory"):
        check_pipelines(CPU, {})


@pytest.mark.parametrize("row", [{"rows": 48}, {"output": [0, None]}], ids=str)
def test_a_table_with_a_launch_that_cannot_be_is_said_and_not_used(table, row):
    tuned.save(table, {("scan", "key"): row})
    line = take_launches(CPU)
    assert "is damaged" in line
    assert "built in" in line
    assert tuned.settings("scan", "key") is None


def test_the_loops_are_those_of_the_model(loops):
    config = resolve_parsed(parse(["--device", "cpu", "--ssm-state", "32", "--mimo-rank", "4"]), None).config
    assert scan_sizes(config.model) == {"head_size": 64, "state": 32, "rank": 4, "pairs": 8}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Where the table of this machine would lie, on a GPU that nobody timed."""
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tuned.json"))
    monkeypatch.setattr(architecture, "architecture", lambda device: "sm_120")
    yield tmp_path / "tuned.json"
    tuned.load(tmp_path / "none")


def test_without_a_table_it_is_said_whether_the_launches_were_ever_measured(table, monkeypatch):
    assert take_launches(CPU) == "launches    built in, unmeasured on sm_120; `sigma tune` looks for faster ones"
    monkeypatch.setattr(architecture, "architecture", lambda device: "sm_90")
    assert "built in, measured on sm_90" in take_launches(CPU)


def test_a_table_is_taken_over(table):
    tuned.save(table, {("scan", "key"): {"rows": 32}})
    assert take_launches(CPU) == f"launches    tuned on this machine: 1 rows of {table}"
    assert tuned.settings("scan", "key") == {"rows": 32}


def test_a_damaged_table_is_said_and_not_used(table):
    table.write_text("{")
    line = take_launches(CPU)
    assert f"{table} is damaged" in line
    assert "built in" in line


def test_the_loops_are_checked_with_the_launches_that_are_in_force(monkeypatch):
    asked = []
    for name in ("check_kernel", "check_pipelines", "take_launches"):
        monkeypatch.setattr(kernel_check, name, lambda *_, name=name: (asked.append(name), name)[1])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch, "device", lambda *_: CPU)
    monkeypatch.setattr(dispatch, "why_not_triton", lambda *_: None)
    config = resolve_parsed(parse(["--device", "cpu"]), None).config
    assert (
        list(kernel_check.kernel_lines(config.model)) == asked == ["check_kernel", "take_launches", "check_pipelines"]
    )
