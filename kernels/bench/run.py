"""Time the kernels and append to results.csv: `make bench ARGS='--op rms_norm'`.

GB/s counts the bytes that the op must move at least; percent_of_copy is its share of what a plain copy reaches on the
same device in the same run. percent_of_floor is the share of the op's floor (floors.py). first_call_s is what a call
costs that compiles and tunes; `cache` says whether the compilers had an empty cache or kept an earlier one.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from floors import KNOWN_DEVICES, MATRIX, Rates, floor_ms
from record import require_cuda, stamp
from registry import Case, Skip, load
from table import append
from timing import Times, interleave, peak_mib, seconds, time_group

COPY_BYTES = 1 << 30
Row = dict[str, str]
CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy, bytes read plus bytes written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / interleave([lambda: target.copy_(source)])[0].median / 1e6


def device_rates(copy_gb_per_s: float) -> Rates:
    """The fixed rates of a known device, else what a copy and a product of large matrices reach now."""
    if known := KNOWN_DEVICES.get(torch.cuda.get_device_name()):
        return Rates(*known)
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return Rates(copy_gb_per_s * 1e9, 2 * MATRIX**3 / interleave([lambda: a @ b])[0].median * 1e3)


def choose(cases: Iterable[Case | list[Case]], chosen: argparse.Namespace) -> Iterator[list[Case]]:
    """Groups of the cases that all filters match."""
    filters = ((chosen.shape, "shape"), (chosen.provider, "provider"), (chosen.direction, "direction"))
    for group in cases:
        wanted = [
            case
            for case in (group if isinstance(group, list) else [group])
            if all(re.search(pattern, getattr(case, name)) for pattern, name in filters)
        ]
        if wanted:
            yield wanted


@dataclass
class Ready:
    """A case whose first calls went well."""

    case: Case
    first_call_s: float
    peak_mib: float
    once_s: float


def make_ready(case: Case) -> Ready:
    """Set a case up, call it for the first time, and once more for its memory."""
    if case.setup:
        case.setup()
    first_s = seconds(case.run)
    return Ready(case, first_s, *peak_mib(case.run))


def all_ready(group: Iterable[Case], failed: list[Case]) -> list[Ready]:
    """The cases that run; the others are named with the reason, and in `failed` when they broke."""
    from triton.errors import TritonError

    ready = []
    for case in group:
        name = f"{case.shape} {case.provider} {case.direction}"
        try:
            ready.append(make_ready(case))
        except (Skip, torch.OutOfMemoryError) as reason:
            print(f"skipped {name}: {reason}", flush=True)
        except (RuntimeError, AssertionError, TypeError, ValueError, TritonError) as error:
            # One library that cannot do a shape must not cost the measurements of the others.
            failed.append(case)
            print(f"failed {name}: {type(error).__name__}: {error}", flush=True)
    return ready


def measure(op: str, group: Iterable[Case], copy_gb_per_s: float, rates: Rates, failed: list[Case]) -> list[Row]:
    """Rows of results.csv without their stamp, for the cases of a group that can be timed."""
    ready = all_ready(group, failed)
    timed = time_group([r.case.run for r in ready], [r.once_s for r in ready])
    costs = [{"first_call_s": f"{r.first_call_s:.2f}", "peak_mib": f"{r.peak_mib:.0f}"} for r in ready]
    return [
        describe(op, r.case, times, copy_gb_per_s, rates) | cost
        for r, times, cost in zip(ready, timed, costs, strict=True)
    ]


def add_errors(group: Iterable[Case], rows: Iterable[Row]) -> None:
    """Fill in the distance to fp64 of the rows, after the timing: a small input must not decide how others tune."""
    by_name = {(case.provider, case.direction): case for case in group}
    for row in rows:
        error = by_name[row["provider"], row["direction"]].error
        if error is None:
            continue
        try:
            row["error"] = f"{error():.2e}"
        except Skip as reason:
            print(f"no error for {row['provider']}: {reason}", flush=True)


def describe(op: str, case: Case, times: Times, copy_gb_per_s: float, rates: Rates) -> Row:
    """What was timed and how fast it was."""
    gb_per_s = case.bytes / times.median / 1e6
    return {
        "op": op,
        "shape": case.shape,
        "dtype": case.dtype,
        "provider": case.provider,
        "direction": case.direction,
        "ms": f"{times.median:.4f}",
        "gb_per_s": f"{gb_per_s:.0f}",
        "percent_of_copy": f"{100 * gb_per_s / copy_gb_per_s:.1f}",
        "p10_ms": f"{times.p10:.4f}",
        "p90_ms": f"{times.p90:.4f}",
        "turns": str(times.turns),
        "percent_of_floor": f"{100 * floor_ms(case.work, rates) / times.median:.1f}" if case.work else "",
    }


def measure_apart(op: str, case: Case) -> None:
    """Measure a case in a process of its own, which appends its row; after `limit_s` it is given up."""
    command = [sys.executable, __file__, "--op", op, "--here"]
    for name in ("shape", "provider", "direction"):
        command += [f"--{name}", f"^{re.escape(getattr(case, name))}$"]
    child = subprocess.Popen(command)
    try:
        if child.wait(case.limit_s) != 0:
            print(f"skipped {case.shape} {case.provider} {case.direction}: its process ended with {child.returncode}")
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        print(f"skipped {case.shape} {case.provider} {case.direction}: not done after {case.limit_s:.0f} s", flush=True)


def cache_state(*, empty: bool) -> str:
    """Take new cache folders when `empty`; says whether Triton's cache was empty at the start."""
    if empty:
        folder = tempfile.mkdtemp(prefix="sigma-bench-")
        os.environ |= {name: str(Path(folder, name)) for name in CACHES}
    cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
    return "kept" if cache.is_dir() and any(cache.iterdir()) else "empty"


def options(ops: Iterable[str]) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", choices=list(ops), action="append", help="may be given several times")
    for name in ("shape", "provider", "direction"):
        parser.add_argument(
            f"--{name}", default="", help=f"regular expression to find in the {name}; ^x$ for exactly x"
        )
    parser.add_argument("--error", action="store_true", help="also compare with fp64 where the op can")
    parser.add_argument("--empty-cache", action="store_true", help="compile and tune anew, for first_call_s")
    parser.add_argument("--here", action="store_true", help="no process of their own for cases with a time limit")
    return parser


def main(arguments: list[str]) -> int:
    """Measure the chosen ops, all by default; 1 when a case broke or the filters left nothing."""
    benchmarks = load()
    chosen = options(benchmarks).parse_args(arguments)
    require_cuda()
    cache = cache_state(empty=chosen.empty_cache)
    origin, copy_gb_per_s = stamp(), copy_bandwidth()
    rates, found, failed = device_rates(copy_gb_per_s), False, []
    print(f"{origin['device']}: a copy moves {copy_gb_per_s:.0f} GB/s; floors are for {rates}", flush=True)
    for op in chosen.op or list(benchmarks):
        for group in choose(benchmarks[op](), chosen):
            found = True
            apart = [case for case in group if case.limit_s is not None and not chosen.here]
            rows = measure(op, [c for c in group if c not in apart], copy_gb_per_s, rates, failed)
            if chosen.error:
                add_errors(group, rows)
            append([origin | row | {"cache": cache} for row in rows])
            for row in rows:
                print(*row.values(), sep="\t", flush=True)
            for case in apart:
                measure_apart(op, case)
            gc.collect()
    if not found:
        print("no case matches the filters")
    return 0 if found and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
