"""run_manifest.json: what made this run: versions, hashes, configuration, and every start of the program on it."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma.config.root import RunConfig
from sigma.core.errors import ConfigError
from sigma.core.files import write_atomic
from sigma.core.strict_json import StrictJsonError, dumps, load_file
from sigma.train.crash_facts import versions

FILE_NAME = "run_manifest.json"


def write_manifest(run_dir: Path, config: RunConfig, hashes: Mapping[str, str], device: str, step: int) -> None:
    """Create the manifest, or add this start to it; `hashes` identify the corpus and the tokenizer.

    Raises ConfigError when the file is damaged.
    """
    path = run_dir / FILE_NAME
    manifest = _read(path) if path.exists() else {"starts": []}
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "step": step,
        "device": device,
        "git_commit": git_commit(),
        "versions": versions(),
    }
    manifest |= {"config": dataclasses.asdict(config), "hashes": dict(hashes)}
    manifest["starts"].append(start)
    write_atomic(path, (dumps(manifest, indent=2) + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = load_file(path)
        if isinstance(manifest, dict) and isinstance(manifest.get("starts"), list):
            return manifest
        problem = "no list of starts in it"
    except StrictJsonError as error:
        problem = str(error).removeprefix(f"{path}: ")
    raise ConfigError(f"{path}: damaged ({problem}); delete it, the run continues without its earlier starts")


def git_commit(root: Path = Path(__file__).parents[2]) -> str | None:
    """Commit of the source tree that this program runs from; None outside a repository or without git."""
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
