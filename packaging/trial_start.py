"""One start of the executable with nothing on PATH, timed from outside: first line, first step, and its counters."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

# A size whose scan runs on Triton, and one for a machine without a GPU.
GPU_ARGS = "--preset small --ssm-state 128 --mimo-rank 1 --require-cuda"
CPU_ARGS = (
    "--device cpu --d-model 16 --n-layers 2 --mamba-ratio 1 --ssm-state 8 --ssm-head-dim 16 --n-heads 1"
    " --attention-head-dim 8 --kv-latent-dim 8 --d-ff 16 --n-routed-experts 2 --moe-top-k 1 --seq-len 64"
    " --batch-size 2 --micro-batch-size 2"
)
COMMON_ARGS = (
    "--steps 20 --save-interval 10 --log-interval 1 --eval-interval 0 --sample-interval 0 --sample-tokens 8"
    " --val-max-tokens 4096"
)


def environment(home: Path) -> dict[str, str]:
    """Nothing on PATH; everything that a start keeps is below `home`. Where the driver is, stays known."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    return {**kept, "PATH": "", "HOME": str(home), "LANG": "C.UTF-8"}


class Start:
    """A training in the folder `run`, of 20 steps."""

    def __init__(self, folder: Path, home: Path, run: Path, *, cuda: bool) -> None:
        arguments = f"{GPU_ARGS if cuda else CPU_ARGS} {COMMON_ARGS}".split()
        self._command = [str(folder / "sigma"), "train", *arguments, "--output-dir", str(run)]
        self._home, self._run = home, run
        self.lines: list[str] = []

    def until_first_step(self, limit_s: float) -> dict[str, Any]:
        """Kill it after its first step."""
        return self._go(limit_s, whole=False)

    def to_the_end(self, limit_s: float) -> dict[str, Any]:
        """Let it end; also what its counters say."""
        found = self._go(limit_s, whole=True)
        states = sorted(self._run.glob("checkpoints/*/state.json"))
        if not states:
            raise RuntimeError(f"no checkpoint; it ended with {found['exit code']}")
        return {**found, "counters": json.loads(states[-1].read_text())["counters"]}

    def _go(self, limit_s: float, *, whole: bool) -> dict[str, Any]:
        """Seconds to the first line and to the end of the first step. Raises RuntimeError without a first step."""
        arrived: list[float] = []
        begin, wall = time.monotonic(), time.time()
        process = subprocess.Popen(
            self._command, cwd="/", env=environment(self._home), text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                arrived.append(time.monotonic() - begin)
                self.lines.append(f"{arrived[-1]:7.2f}  {line.rstrip()}")

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        first = None
        while process.poll() is None and time.monotonic() - begin < limit_s and (whole or first is None):
            first = first or self._first_step()
            time.sleep(0.02)
        first = first or self._first_step()
        process.kill()
        process.wait()
        reader.join(5)
        if first is None:
            raise RuntimeError(f"no first step within {limit_s:.0f} s; the end of its output: {self.lines[-12:]}")
        seconds = {"first_line_s": round(arrived[0], 3), "first_step_s": round(first - wall, 2)}
        return {**seconds, "whole_s": round(time.monotonic() - begin, 1), "exit code": process.returncode}

    def _first_step(self) -> float | None:
        """When the first step was done (Unix time), if it was."""
        try:
            rows = [
                json.loads(line) for line in (self._run / "metrics.jsonl").read_text().splitlines() if line[-1:] == "}"
            ]
        except (OSError, ValueError):
            return None
        return next((row["t"] for row in rows if row["kind"] == "train"), None)
