"""The garbage collector rests while libraries are imported: of the many objects that they make, nearly all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collections() -> Iterator[None]:
    """Inside, no collection runs; what exists at the end is left out of all later ones, which so are short."""
    was_enabled = gc.isenabled()
    gc.collect()  # what is garbage by now would be frozen with the rest, and its memory lost
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # else the first collection after this would go through everything
        if was_enabled:
            gc.enable()
