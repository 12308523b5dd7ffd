"""Whether a sound checkpoint belongs to this configuration. A mismatch is the user's to resolve, never damage."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sigma.config.root import RunConfig
from sigma.core import strict_json
from sigma.data.tokenizer import load_tokenizer
from sigma.train.tensor_file import Spec
from sigma.train.verify_checkpoint import IncompatibleCheckpointError, Manifest

_MOST_LINES = 12
_ABSENT = "nothing"


def identity_of(config: RunConfig) -> dict[str, Any]:
    """What a checkpoint cannot be continued without: the model's sizes, the optimizer, the tokenizer, the source.

    Length, learning rates, batch size and everything else of the run may change between two starts.
    """
    return {
        "model": dataclasses.asdict(config.model),
        "train": {"optimizer": config.train.optimizer},
        "data": {"tokenizer": _tokenizer_name(config), "data_backend": config.data.data_backend},
    }


def _tokenizer_name(config: RunConfig) -> str:
    """The name of a bundled tokenizer; of another one its content, wherever the file lies."""
    tokenizer = config.data.tokenizer
    return load_tokenizer(tokenizer).name if isinstance(tokenizer, Path) else tokenizer


def identity_hash(identity: Mapping[str, Any]) -> str:
    """SHA-256 of the identity in sorted JSON."""
    return hashlib.sha256(strict_json.dumps(identity, sort_keys=True).encode()).hexdigest()


def check_identity(folder: Path, manifest: Manifest, identity: Mapping[str, Any]) -> None:
    """Raise IncompatibleCheckpointError listing every flag that differs from the checkpoint's."""
    if manifest.identity_sha256 == identity_hash(identity):
        return
    stored, current = flatten(manifest.identity), flatten(identity)
    lines = [
        f"--{name.rpartition('.')[2].replace('_', '-')}: {stored.get(name, _ABSENT)} in the checkpoint,"
        f" {current.get(name, _ABSENT)} now"
        for name in sorted(stored.keys() | current.keys())
        if stored.get(name, _ABSENT) != current.get(name, _ABSENT)
    ]
    raise _incompatible(folder, "was made with another configuration", lines or ["the hash of the configuration"])


def check_specs(folder: Path, group: str, found: Mapping[str, Spec], expected: Mapping[str, Spec]) -> None:
    """Raise IncompatibleCheckpointError listing tensors of a group that are missing, unknown, or of another shape."""
    lines = [
        f"{group}: {name}: {found.get(name, _ABSENT)} in the checkpoint, {expected.get(name, _ABSENT)} now"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if lines:
        raise _incompatible(folder, "holds other tensors than this model", lines)


def _incompatible(folder: Path, what: str, lines: list[str]) -> IncompatibleCheckpointError:
    shown = lines[:_MOST_LINES] + ([f"... and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else [])
    return IncompatibleCheckpointError(
        f"checkpoint {folder} {what}:\n  "
        + "\n  ".join(shown)
        + "\ngive the checkpoint's values, or another --output-dir, or --no-resume to start anew; nothing was changed"
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
