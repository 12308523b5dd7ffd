"""Compile what the official scan tunes over, in many processes at once; then run.py has only to time it.

Triton's autotuner compiles its configurations one after the other, on one core. Here every process calls the same case
as run.py on the same device, compiles its share of every kernel's configurations into TRITON_CACHE_DIR, and launches
one of them, because the next kernel needs what it computes. Nothing is timed and no choice is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from record import require_cuda

OP, PROVIDER, DIRECTION = "scan", "^mamba3-official$", "^forward\\+backward$"
POLL_S = 0.2
SAID_LINES = 6


@dataclass
class Share:
    """One of `jobs` shares of all configurations, dealt out in turn, from each kernel on to the next."""

    index: int
    jobs: int
    dealt: int = 0

    def of(self, configs: list[Any]) -> list[Any]:
        """Ours of these; the shares are whole only if every process meets the kernels in the same order."""
        first, self.dealt = self.dealt, self.dealt + len(configs)
        return [config for k, config in enumerate(configs, first) if k % self.jobs == self.index]

    def run(self, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of `Autotuner.run`: compile our share and launch the first configuration that can be."""
        from triton.compiler.errors import CompileTimeAssertionFailure
        from triton.runtime.errors import OutOfResources, PTXASError

        unfit = (OutOfResources, CompileTimeAssertionFailure, PTXASError)  # what the autotuner passes over
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        configs = tuner.prune_configs(kwargs)
        ours, compiled = self.of(configs), []
        for config in ours:
            started, error = time.perf_counter(), ""
            try:
                tuner.fn.run(*args, **{**kwargs, **config.all_kwargs(), "warmup": True})
                compiled.append(config)
            except unfit as reason:
                error = f"{type(reason).__name__}: {str(reason).strip()[:120]}"
            took = time.perf_counter() - started
            report(kernel=tuner.base_fn.__name__, config=str(config), of=len(configs), seconds=took, error=error)
        for config in chain(compiled, (config for config in configs if config not in ours)):
            try:
                return tuner.fn.run(*args, **kwargs, **config.all_kwargs())
            except unfit:
                continue
        raise RuntimeError(f"no configuration of {tuner.base_fn.__name__} can be launched")


def report(**row: Any) -> None:
    """One line for the process that adds up; what was done before the limit is not lost."""
    print(json.dumps(row), flush=True)


def compile_share(share: Share, shape: str) -> None:
    """Call every chosen case once, with the autotuner's place taken by the share."""
    from registry import load
    from run import choose
    from triton.runtime.autotuner import Autotuner

    def run(self: Autotuner, *args: Any, **kwargs: Any) -> Any:
        return share.run(self, *args, **kwargs)

    Autotuner.run = run
    chosen = Namespace(shape=shape, provider=PROVIDER, direction=DIRECTION)
    cases = list(chain.from_iterable(choose(load()[OP](), chosen)))
    if not cases:
        raise SystemExit(f"no case of {OP} matches {shape}")
    for case in cases:
        if case.setup:
            case.setup()
        case.run()
        torch.cuda.synchronize()


def run_all(commands: list[list[str]], folder: Path, limit_s: float) -> list[str]:
    """Run them at once, their output in `folder`; how each ended. After `limit_s` the rest are killed."""
    environment = os.environ | {"TRITON_CACHE_AUTOTUNING": "0"}
    children: list[subprocess.Popen[bytes]] = []
    try:
        for k, command in enumerate(commands):
            with open(folder / f"{k}.rows", "w") as rows, open(folder / f"{k}.said", "w") as said:
                children.append(subprocess.Popen(command, stdout=rows, stderr=said, env=environment))
        end = time.monotonic() + limit_s
        while time.monotonic() < end and any(child.poll() is None for child in children):
            time.sleep(POLL_S)
        return ["not done" if child.poll() is None else f"ended with {child.returncode}" for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """What the processes reported; a line that was cut off by a kill is left out."""
    lines = [line for path in folder.glob("*.rows") for line in path.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]


def summary(rows: Iterable[dict[str, Any]]) -> list[str]:
    """One line for each kernel, and one for each reason why a configuration did not compile."""
    kernels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kernels.setdefault(row["kernel"], []).append(row)
    lines = []
    for name, own in kernels.items():
        errors = Counter(row["error"] for row in own if row["error"])
        lines.append(
            f"{name}: {len(own) - errors.total()} of {own[0]['of']} configurations compiled, "
            f"{errors.total()} cannot be, {sum(row['seconds'] for row in own):.1f} s"
        )
        lines += [f"    {count} x {error}" for error, count in errors.items()]
    return lines


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="peers_compile.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="", help="regular expression to find in the shape, as in run.py")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="processes at once")
    parser.add_argument("--limit-s", type=float, default=240.0, help="kill what is not done after so long")
    parser.add_argument("--share", type=int, help="compile this share here, one of 0 to jobs - 1")
    return parser


def main(arguments: list[str]) -> int:
    """Compile all shares; 1 when one of them broke or was not done."""
    given = options().parse_args(arguments)
    require_cuda()
    if given.share is not None:
        compile_share(Share(given.share, given.jobs), given.shape)
        return 0
    started, own = time.monotonic(), [sys.executable, __file__, "--shape", given.shape, "--jobs", str(given.jobs)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ends = run_all([[*own, "--share", str(k)] for k in range(given.jobs)], folder, given.limit_s)
        print(*summary(rows_of(folder)), sep="\n")
        for k, end in enumerate(ends):
            if end != "ended with 0":
                said = (folder / f"{k}.said").read_text(errors="replace").splitlines()[-SAID_LINES:]
                print(f"share {k} {end}", *said, sep="\n    ")
    print(f"{len(ends)} processes, {time.monotonic() - started:.0f} s", flush=True)
    return int(set(ends) != {"ended with 0"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
