"""Mamba-3 scan, op-only: ours, the official one, Mamba-2's, fla's simple_gla and the PyTorch reference.

The others tune themselves at the first batch and length that they see and keep that for the next ones with the same
head sizes. To be fair to them, measure one shape per process, each with a TRITON_CACHE_DIR of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from floors import ScanShape
from registry import Case, benchmark
from scan_group import scan_groups
from scan_providers import OP_ONLY

# A training step's usual batch, one long sequence, two of them, many heads, a small state; then MIMO.
SHAPES = [
    ScanShape(8, 4096, 32),
    ScanShape(1, 32768, 32),
    ScanShape(2, 16384, 32),
    ScanShape(8, 2048, 64),
    ScanShape(8, 4096, 32, state=64),
    ScanShape(8, 4096, 32, rank=2),
    ScanShape(8, 4096, 32, rank=4),
]


@benchmark("scan")
def cases() -> Iterator[list[Case]]:
    """bf16 inputs, fp32 parameters; gradients of all of them."""
    return scan_groups(SHAPES, OP_ONLY)
