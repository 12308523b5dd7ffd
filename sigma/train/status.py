"""status.json: where the run stands, for a person or a program that looks from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sigma.core.files import write_atomic
from sigma.core.strict_json import dumps

FILE_NAME = "status.json"
State = Literal["running", "finished", "interrupted", "crashed"]


def write_status(run_dir: Path, state: State, step: int, steps: int, values: Mapping[str, Any]) -> None:
    """Replace `status.json` atomically; `values` are the newest metrics."""
    status = {"state": state, "step": step, "steps": steps, "pid": os.getpid(), "updated": round(time.time(), 3)}
    write_atomic(run_dir / FILE_NAME, (dumps({**status, **values}, indent=2) + "\n").encode())
