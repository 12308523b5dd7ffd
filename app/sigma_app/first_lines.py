"""What every start says before it loads anything heavy: where it reads, where it writes, and which GPU there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sigma.config.root import RunConfig
from sigma_app import nvidia


def first_lines(
    config: RunConfig, args_file: Path | None, log: Path | None, found: nvidia.Nvidia | None
) -> Iterator[str]:
    """One line each for the args file, the run folder, the log and the GPU; `found` is None where none is wanted."""
    yield f"args file   {args_file or 'none'}"
    yield f"run folder  {config.run.output_dir}"
    if log is not None:
        yield f"log         {log}"
    yield f"GPU         {found or 'not asked for (--device cpu)'}"
