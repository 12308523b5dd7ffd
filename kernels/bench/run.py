"""Time the kernels and append to results.csv: `make bench ARGS='--op rms_norm'`.

GB/s counts the bytes that the op must move at least; the last column is its share of what a plain copy reaches on the
same device in the same run, which is the floor that a memory-bound kernel can come near and not pass.
"""

from __future__ import annotations

import argparse
import csv
import gc
import sys
from pathlib import Path

import torch
from record import require_cuda, stamp
from registry import Case, load

RESULTS = Path(__file__).with_name("results.csv")
COLUMNS = (
    "date", "commit", "device", "torch", "triton", "op", "shape", "dtype", "provider", "direction", "ms", "gb_per_s",
    "percent_of_copy",
)  # fmt: skip
COPY_BYTES = 1 << 30


def milliseconds(case_run) -> float:
    """Median time on the device; the cache is cleared before each turn."""
    from triton.testing import do_bench

    return float(do_bench(case_run, warmup=50, rep=200, return_mode="median"))


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy, bytes read plus bytes written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / milliseconds(lambda: target.copy_(source)) / 1e6


def measure(op: str, case: Case, copy_gb_per_s: float) -> dict[str, str]:
    """One row of results.csv without its stamp."""
    elapsed_ms = milliseconds(case.run)
    gb_per_s = case.bytes / elapsed_ms / 1e6
    return {
        "op": op,
        "shape": case.shape,
        "dtype": case.dtype,
        "provider": case.provider,
        "direction": case.direction,
        "ms": f"{elapsed_ms:.4f}",
        "gb_per_s": f"{gb_per_s:.0f}",
        "percent_of_copy": f"{100 * gb_per_s / copy_gb_per_s:.1f}",
    }


def append(rows: list[dict[str, str]], path: Path = RESULTS) -> None:
    """Add rows to the table; a new file gets its header."""
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str]) -> int:
    """Measure the chosen ops, all by default."""
    benchmarks = load()
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=list(benchmarks), action="append", help="may be given several times")
    chosen = parser.parse_args(arguments).op or list(benchmarks)
    require_cuda()
    origin, copy_gb_per_s = stamp(), copy_bandwidth()
    print(f"{origin['device']}: a copy moves {copy_gb_per_s:.0f} GB/s", flush=True)
    for op in chosen:
        for case in benchmarks[op]():
            row = measure(op, case, copy_gb_per_s)
            append([origin | row])
            print(*row.values(), sep="\t", flush=True)
            gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
