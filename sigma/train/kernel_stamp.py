"""Whether the kernels of such a start are in Triton's cache already: then its first step is not rehearsed.

The mark is a small file in that cache, so it is gone when the cache is. A start that is taken for another one, or finds
no mark, only rehearses in vain; one with a mark that says too much compiles in its first step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sigma.config.root import RunConfig
from sigma.core import strict_json
from sigma.core.files import write_atomic
from sigma.core.paths import build_id
from sigma.train.verify_checkpoint import CHECKPOINTS_DIR, committed, step_of
from sigma_kernels.ahead import cache_folder, facts_of_kernels, why_not_ahead

SUFFIX = ".first-step"


class KernelStamp:
    """The file that says that what was launched under these facts is in the cache."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._text = strict_json.dumps({"build": build_id(), **facts}, sort_keys=True).encode()
        self._path = folder / (hashlib.sha256(self._text).hexdigest()[:32] + SUFFIX)

    def is_left(self) -> bool:
        """False also for a file that is torn or cannot be read."""
        try:
            return self._path.read_bytes() == self._text
        except OSError:
            return False

    def leave(self) -> None:
        """Write the file, if it is not there. Where that fails the next start rehearses again."""
        with suppress(OSError):
            if not self.is_left():
                write_atomic(self._path, self._text)


def all_steps_are_done(config: RunConfig) -> bool:
    """Whether this start will take no step, as far as the names of the run's checkpoints tell."""
    newest = committed(config.run.output_dir / CHECKPOINTS_DIR)[:1] if config.run.resume else []
    return any((step_of(folder) or 0) >= (config.train.steps or 0) for folder in newest)


def stamp_of(config: RunConfig, vocabulary: int) -> KernelStamp | None:
    """The mark of starts with this configuration on this device; None where nothing is compiled ahead.

    Raises UnreadableCheckpointError.
    """
    if why_not_ahead(torch.device(config.run.device)) is not None or all_steps_are_done(config):
        return None
    data = config.data
    sizes = {"seq_len": data.seq_len, "batch_size": data.batch_size, "micro_batch_size": data.micro_batch_size}
    sections = {name: getattr(config, name) for name in ("model", "train", "optim", "curvature", "c3o")}
    chosen = {"data": sizes, "vocabulary": vocabulary, "deterministic": config.run.deterministic, **sections}
    return KernelStamp(cache_folder(), {**facts_of_kernels(), **chosen})
