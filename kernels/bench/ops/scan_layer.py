"""Mamba-3 scan, layer-equivalent: from views of the in-projection to the gated output."""

from __future__ import annotations

from collections.abc import Iterator

from ops.scan import SHAPES
from registry import Case, benchmark
from scan_group import scan_groups
from scan_providers import LAYER


@benchmark("scan_layer")
def cases() -> Iterator[list[Case]]:
    """What a library leaves to its caller (softplus, norms, repeated angles) counts as well."""
    return scan_groups([shape for shape in SHAPES if shape.rank == 1], LAYER)
