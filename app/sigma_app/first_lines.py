"""What every start says first: which GPU there is, where it reads and where it writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sigma.config.root import RunConfig
from sigma_app import nvidia


def gpu_line(found: nvidia.Nvidia | None) -> str:
    """What the driver says; `found` is None where no GPU is wanted."""
    return f"GPU         {found or 'not asked for (--device cpu)'}"


def place_lines(config: RunConfig, args_file: Path | None, log: Path | None) -> Iterator[str]:
    """One line each for the args file, the run folder and the log."""
    yield f"args file   {args_file or 'none'}"
    yield f"run folder  {config.run.output_dir}"
    if log is not None:
        yield f"log         {log}"
