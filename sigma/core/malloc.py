"""Tells the C library to keep freed memory instead of giving it back to the system."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD, NEVER_TRIM = 1 << 30, 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc reuse large freed blocks; False on another C library, where nothing is changed.

    A training step on the CPU allocates and frees the same large tensors again and again. By default glibc returns
    each to the kernel, and touching it anew costs a page fault per 4 KB: 10-20 % of a step (docs/log.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, NEVER_TRIM))
