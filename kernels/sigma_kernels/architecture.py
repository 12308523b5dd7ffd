"""Which GPU a kernel is launched on, as the tables of launches name it."""

from __future__ import annotations

from functools import cache

import torch

from sigma_kernels import dispatch

ARCHITECTURES = {80: "sm_80", 86: "sm_89", 89: "sm_89", 90: "sm_90", 100: "sm_100", 103: "sm_100", 120: "sm_120"}
"""Compute capability times ten -> the row that it takes; one that is missing takes that of the next lower one."""

WARPGROUP_PRODUCTS = frozenset({"sm_90", "sm_100"})
"""Matrix products read their operands from shared memory, and there is more than 99 KiB of it."""

COPY_ENGINE = frozenset({"sm_90", "sm_100", "sm_120"})
"""An engine copies tiles between memory and shared memory, as tensor descriptors say."""


def architecture_of(capability: int) -> str:
    """`sm_89` for 86 and 89; the lowest for anything older."""
    known = [name for number, name in ARCHITECTURES.items() if number <= capability]
    return known[-1] if known else ARCHITECTURES[80]


@cache
def architecture(device: torch.device) -> str:
    """The architecture of a CUDA device; `sm_90` in the interpreter."""
    if dispatch.interpreting():
        return "sm_90"
    major, minor = torch.cuda.get_device_capability(device)
    return architecture_of(10 * major + minor)
