"""What every measurement is stored with: when, of which commit, on which device, with which libraries."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """SIGMA_COMMIT where the tree has no git history, else git's short hash, with `+` when files differ from it."""
    if given := os.environ.get("SIGMA_COMMIT"):
        return given
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def require_cuda() -> None:
    """End with 3 where there is no CUDA device: a measurement elsewhere would mean nothing."""
    if not torch.cuda.is_available():
        print("this needs an NVIDIA GPU, and torch sees none; `sigma doctor` says why")
        raise SystemExit(3)


def stamp() -> dict[str, str]:
    """The columns that say where a row comes from."""
    import triton

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "device": torch.cuda.get_device_name(),
        "torch": str(torch.__version__),
        "triton": triton.__version__,
    }
