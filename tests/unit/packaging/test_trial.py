"""The trial on another machine: a stage that fails is noted and the next one runs; starts are timed from outside."""

import json
import sys
import tarfile
import zipfile

import pytest

import trial
import trial_start
import trial_wheels

PROGRAM = f"""#!{sys.executable}
import json, os, pathlib, sys, time
print("SIGMA", os.environ["PATH"] == "", flush=True)
run = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1])
(run / "checkpoints" / "step-000000010").mkdir(parents=True)
(run / "checkpoints" / "step-000000010" / "state.json").write_text('{{"counters": {{"scan.use_triton": 20}}}}')
for step in (0, 1, 2):
    row = {{"kind": "train" if step else "startup", "step": step, "t": time.time()}}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\\n")
    time.sleep(0.3)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "sigma").write_text(PROGRAM)
    (tmp_path / "sigma").chmod(0o755)
    return tmp_path


@pytest.fixture
def tried(tmp_path):
    return trial.Trial(tmp_path / "wheels", tmp_path / "work", tmp_path / "out", 60)


def test_a_stage_that_fails_is_noted_and_the_next_one_runs(tried, tmp_path):
    def fail(_):
        raise OSError("no space")

    assert not tried.stage("one", 10, fail)
    assert tried.stage("two", 10, lambda _: {"MiB": 3})
    found = json.loads((tmp_path / "out" / "executable.json").read_text())
    assert (found["one"]["error"], found["two"]["result"]) == ("OSError: no space", {"MiB": 3})
    assert "-- one: OSError: no space" in (tmp_path / "out" / "executable.log").read_text()


def test_a_stage_that_has_no_time_left_is_not_begun(tried):
    tried.end = 0
    assert not tried.stage("late", 10, lambda _: pytest.fail("it ran"))
    assert tried.found["late"] == {"error": "no time left"}


def test_a_command_that_outlasts_its_stage_is_killed_with_its_children(tried):
    def wait(one):
        one.limit_s = 0.5
        one.run("sh", "-c", "echo begun; sleep 60 & wait")

    assert not tried.stage("slow", 10, wait)
    assert tried.found["slow"]["error"] == "StageError: sh ran longer than 0 s"
    assert tried.found["slow"]["seconds"] < 10


def test_a_start_is_killed_after_its_first_step(program, tmp_path):
    start = trial_start.Start(program, tmp_path / "home", tmp_path / "run", cuda=False)
    found = start.until_first_step(20)
    assert 0 < found["first_line_s"] < found["first_step_s"] <= found["whole_s"] + 0.1
    assert found["exit code"] == -9
    assert [line.split(maxsplit=1)[1] for line in start.lines] == ["SIGMA True"]


def test_a_whole_start_tells_the_counters_of_its_checkpoint(program, tmp_path):
    found = trial_start.Start(program, tmp_path / "home", tmp_path / "run", cuda=False).to_the_end(20)
    assert (found["exit code"], found["counters"]) == (0, {"scan.use_triton": 20})


def test_a_start_without_a_first_step_tells_its_last_words(program, tmp_path):
    (program / "sigma").write_text("#!/bin/sh\necho no kernel\nexit 3\n")
    with pytest.raises(RuntimeError, match=r"no first step .*no kernel"):
        trial_start.Start(program, tmp_path / "home", tmp_path / "run", cuda=False).until_first_step(20)


def test_triton_travels_without_what_no_bundle_holds(tmp_path):
    wheel = tmp_path / "triton-3.7.1-cp312-cp312-manylinux.whl"
    wanted = ["triton/__init__.py", "triton/backends/nvidia/bin/ptxas", "triton-3.7.1.dist-info/METADATA"]
    unwanted = ["triton/_C/libproton.so", "triton/backends/amd/compiler.py", trial_wheels.BLACKWELL]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in wanted + unwanted:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o755 if "/bin/" in name else 0o644) << 16
            archive.writestr(entry, "content")
    made = trial_wheels.trim_triton(wheel, tmp_path)
    assert made.name == "triton-3.7.1.tar.xz"
    with tarfile.open(made) as archive:
        modes = {entry.name: entry.mode for entry in archive if entry.isreg()}
    assert modes == {name: 0o755 if "/bin/" in name else 0o644 for name in wanted}
