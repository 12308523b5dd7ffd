"""Triton's cache folder where the environment cannot carry it.

On Windows Triton reads TRITON_CACHE_DIR in the system's code page and takes the bytes for UTF-8: a name with an accent
raises UnicodeDecodeError. A knob that is set in the process is never read from the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping

VARIABLE = "SIGMA_TRITON_CACHE_DIR"
"""Stands in for TRITON_CACHE_DIR; children inherit it."""


def spare_triton(environment: MutableMapping[str, str]) -> None:
    """On Windows, move a TRITON_CACHE_DIR that Triton cannot read to VARIABLE."""
    if sys.platform == "win32" and not environment.get("TRITON_CACHE_DIR", "").isascii():
        environment[VARIABLE] = environment.pop("TRITON_CACHE_DIR")


def apply_cache_folder(environment: Mapping[str, str]) -> bool:
    """Give Triton the folder that VARIABLE names; False when there is none (then Triton is not imported)."""
    if VARIABLE not in environment:
        return False
    from triton import knobs

    before, knobs.propagate_env = knobs.propagate_env, False  # or the variable would come back
    try:
        knobs.cache.dir = environment[VARIABLE]
    finally:
        knobs.propagate_env = before
    return True
