"""What the first training step of a preset costs on this GPU, and its longest kernel.

    PYTHONPATH=.:kernels:app python kernels/bench/first_step.py [--preset small ...]

Each preset is trained for a few steps in two processes: the first has empty caches and compiles all that a training
step needs, the second finds it there. What starting costs is the time of the kernels that are compiled ahead of the
first step, and what that step takes beyond a later one. The longest kernel is that of one profiled step; Windows
resets a GPU whose kernel takes two seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import require_cuda, stamp
from run import CACHES
from timing import seconds
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from sigma.build import build_trainer
from sigma.config.parse import parse
from sigma.config.presets import PRESETS, resolve
from sigma.train.feature import StepState
from sigma.train.loop import Trainer

FLAGS = "--device cuda --data-backend bundled --batch-size 8 --micro-batch-size 8 --save-minutes 0 --save-interval 0"
STEPS = 5  # the last one is profiled
TIMES = ("kernels_s", "steps_s")


def measure(flags: str) -> dict[str, Any]:
    """Seconds of the kernels ahead and of each step but the last, and of that one the longest kernel."""
    memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    with tempfile.TemporaryDirectory() as folder:
        config = resolve(parse([*flags.split(), "--steps", str(STEPS), "--output-dir", folder]).config, memory_gb)
        trainer = build_trainer(config)
        try:
            steps_s = [round(seconds(partial(_step, trainer, number)), 3) for number in range(1, STEPS)]
            if trainer.stamp is not None:
                trainer.stamp.leave()
            with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                _step(trainer, STEPS)
        finally:
            trainer.close()
    peak_gib = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    kernels = {"kernels_s": round(trainer.startup["startup_kernels_s"], 3), "kernels": trainer.startup["kernels_ahead"]}
    return {**kernels, "steps_s": steps_s, **longest_kernel(profiled.events() or []), "peak_gib": peak_gib}


def longest_kernel(events: Iterable[Any]) -> dict[str, Any]:
    """Its name and milliseconds, and how many there are among the events of a profile."""
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    longest = max(kernels, key=lambda event: event.device_time)
    return {
        "longest_kernel": longest.name[:80],
        "longest_ms": round(longest.device_time / 1e3, 3),
        "kernels_of_a_step": len(kernels),
    }


def _step(trainer: Trainer, number: int) -> None:
    state = StepState(number, trainer.data.next_batch())
    trainer.features.run("on_batch", state)
    trainer.stepper.train(state, 1.0)
    trainer.features.run("after_step", state)


def in_a_process(flags: str, caches: dict[str, str]) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--here", flags]
    done = subprocess.run(command, env=os.environ | caches, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(preset: str) -> dict[str, Any]:
    """Both processes of a preset."""
    flags = f"--preset {preset} {FLAGS}"
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: str(Path(folder, name)) for name in CACHES}
        empty, kept = (in_a_process(flags, caches) for _ in range(2))
    found = {"preset": preset, **{name: kept[name] for name in kept if name not in TIMES}, "kernels": empty["kernels"]}
    for name, one in (("empty_cache", empty), ("kept_cache", kept)):
        found[f"{name}_kernels_s"] = one["kernels_s"]
        found[f"{name}_start_s"] = round(one["kernels_s"] + one["steps_s"][0] - min(one["steps_s"][1:]), 2)
    return found | {"step_s": min(kept["steps_s"][1:])}


def main(arguments: list[str]) -> int:
    """One line of JSON for each preset."""
    parser = argparse.ArgumentParser(prog="first_step.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", nargs="*", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--here", metavar="FLAGS", help="measure a training with these flags in this process")
    given = parser.parse_args(arguments)
    require_cuda()
    if given.here:
        print(json.dumps(measure(given.here)))
        return 0
    origin = stamp()
    for preset in given.preset:
        print(json.dumps({**origin, **report(preset)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
