"""`sigma tokenizer train`: what a person sees of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma.data.tokenizer_training import FILE_NAME, MANIFEST_NAME, Sample, train_tokenizer


def train_and_tell(data: DataSection, seed: int, vocabulary: int, sample_mb: float, folder: Path) -> Iterator[str]:
    """Train, and say what went in and what came out. Raises ConfigError when the folder cannot be written."""
    yield f"reading up to {sample_mb:g} MB of --data-backend {data.data_backend}"
    try:
        manifest = train_tokenizer(Sample(data, seed, int(sample_mb * 1e6)), vocabulary, folder)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror or error}; give another folder") from error
    sample = manifest["sample"]
    for source, size in sample["bytes"].items():
        yield f"  {source}: {sample['records'][source]} documents, {size:,} bytes"
    for reason, count in sample["dropped"].items():
        yield f"  dropped {count}: {reason}"
    yield f"{manifest['vocabulary']} ids, sha256 {manifest['tokenizer']['sha256']}"
    if manifest["vocabulary"] < vocabulary:
        yield f"fewer than the {vocabulary} asked for: the sample has no more pairs that occur twice"
    yield f"{folder / FILE_NAME} and {MANIFEST_NAME}; train with it: sigma train --tokenizer {folder / FILE_NAME}"
