"""Search the launches of the kernels at the sizes of the bars, for the tables in the code.

The rows that it keeps in tuned.json go by hand into `scan/triton_launch.py` and `orthogonalise/kernel.py`,
with the device that they were measured on. `sigma tune` does the same for the sizes of one run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from record import require_cuda, stamp

from sigma_kernels.orthogonalise.tunable import orthogonalise_tunable
from sigma_kernels.scan.tunable import scan_tunable
from sigma_kernels.tuning import Tunable, search_all

Make = Callable[[torch.device], Tunable]


def scan(heads: int, state: int, rank: int, *, norm: bool) -> Make:
    """B8 T4096 P64, half of the pairs turn, bf16."""
    sizes = {"state": state, "rank": rank, "groups": 1, "pairs": state // 4, "norm": norm}
    return lambda device: scan_tunable((8, 4096, heads, 64), **sizes, dtype=torch.bfloat16, device=device)


def matrices(count: int, rows: int, columns: int) -> Make:
    """A batch of an optimizer."""
    return lambda device: orthogonalise_tunable(count, rows, columns, device)


TUNABLES: dict[str, Make] = {
    "scan siso": scan(32, 128, 1, norm=False),
    "scan siso N64": scan(32, 64, 1, norm=False),
    "scan mimo": scan(32, 128, 4, norm=False),
    "scan mimo N64 norm": scan(24, 64, 4, norm=True),
    "orthogonalise 256": matrices(96, 256, 768),
    "orthogonalise 512": matrices(48, 512, 768),
    "orthogonalise 768": matrices(40, 768, 768),
    "orthogonalise 1536": matrices(12, 1536, 1536),
}


def main(arguments: list[str]) -> int:
    """Search the chosen ones, each in an equal share of the time."""
    parser = argparse.ArgumentParser(prog="tune.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="part of a name, as in `scan siso` or `768`")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--table", type=Path, default=Path("tuned.json"))
    given = parser.parse_args(arguments)
    require_cuda()
    print(stamp(), flush=True)
    device = torch.device("cuda", 0)
    chosen = [partial(make, device) for name, make in TUNABLES.items() if given.only in name]
    search_all(chosen, given.table, given.minutes, partial(print, flush=True))
    return 0 if chosen else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
