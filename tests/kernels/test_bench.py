"""The benchmark scripts: every op's file is found, and nothing is recorded where nothing can be measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "kernels" / "bench"


def start(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a script from the root as on_gpu.sh does, with any GPU hidden."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([".", "kernels", "app"])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def contents() -> dict[str, bytes]:
    return {name: (BENCH / name).read_bytes() for name in ("results.csv", "gpu_tests.jsonl") if (BENCH / name).exists()}


def test_an_unknown_op_is_refused_and_every_file_in_ops_is_offered():
    result = start(sys.executable, "kernels/bench/run.py", "--op", "nothing")
    assert result.returncode == 2
    offered = [path.stem for path in (BENCH / "ops").glob("*.py")]
    assert offered
    assert [op for op in offered if op not in result.stderr] == []


@pytest.mark.parametrize("script", ["run.py", "gpu_tests.py"])
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
