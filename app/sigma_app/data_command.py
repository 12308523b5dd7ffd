"""`sigma data`: a look at the texts of a backend, and files of hashes of held-out texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma.data.backends import natural_shares
from sigma.data.local import LocalFiles
from sigma.data.preview import SourcePreview, measure_stages, preview_sources
from sigma.data.quality.contamination import write_hashes
from sigma.data.record import Record, Unavailable
from sigma.data.tokenizer import load_tokenizer
from sigma_app.console import visible

SHOWN_CHARACTERS = 160
SHOWN_DROPPED = 1  # of each reason


def preview_lines(data: DataSection, seed: int, documents: int, seconds: float) -> Iterator[str]:
    """The lines of `sigma data preview`, as they become known."""
    tokenizer = load_tokenizer(data.tokenizer)
    shares = natural_shares(data)
    said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share > 0) or "bundled"
    yield f"--data-backend {data.data_backend}: {said} of the natural text"
    yield f"tokenizer {tokenizer.name}, encoded by {tokenizer.encoder}"
    records: list[Record] = []
    for found in preview_sources(data, seed, tokenizer, seconds):
        yield ""
        yield from _source_lines(found, documents)
        records += found.records
    yield ""
    yield "cost of each step alone, on one core (MB of text a second):"
    for stage in measure_stages(data, tokenizer, records):
        yield f"  {stage.name:<16} {stage.mb_per_s:8.1f}"


def _source_lines(found: SourcePreview, documents: int) -> Iterator[str]:
    if found.failure is not None:
        yield f"{found.name}: {'reading stopped' if found.records else 'unreachable'}: {visible(found.failure)}"
    if not found.records:
        return
    count, size, speed = len(found.records), found.bytes, found.bytes / found.read_s / 1e6
    yield f"{found.name}: {count} documents, {size:,} bytes, read in {found.read_s:.2f} s ({speed:.1f} MB/s)"
    kept = sum(len(record.text.encode()) for record in found.kept)
    if found.tokens:
        yield f"  kept {len(found.kept)}: {found.tokens:,} tokens, {kept / found.tokens:.2f} bytes each"
    if not found.gated:
        yield "  texts of the program itself: nothing is dropped"
    for reason, dropped in sorted(found.dropped.items(), key=lambda item: -len(item[1])):
        yield f"  dropped {len(dropped)}: {reason}"
        yield from (f"    {_shown(record)}" for record in dropped[: min(SHOWN_DROPPED, documents)])
    for reason, number in sorted(found.skipped.items()):
        yield f"  skipped while reading {number}: {reason}"
    yield from (f"  {_shown(record)}" for record in found.kept[:documents])


def _shown(record: Record) -> str:
    text = " ".join(record.text[: 4 * SHOWN_CHARACTERS].split())
    short = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
    return visible(f"[{record.id}] {short}")


def hash_folder(folder: Path, out: Path) -> int:
    """Write the hashes of the texts in a folder; returns how many. Raises ConfigError where that is impossible."""
    collection = LocalFiles(folder)
    try:
        return write_hashes(out, (record.text for record in _all_records(collection)))
    except (OSError, Unavailable) as error:
        raise ConfigError(f"--out {out}: {error}") from error


def _all_records(collection: LocalFiles) -> Iterator[Record]:
    """Every record of a folder once. A damaged file raises: a text that is not read is not guarded."""
    for number in range(len(collection.files())):
        position: int | None = 0
        while position is not None:
            block = collection.read(number, position)
            if block.skipped:
                raise ConfigError(
                    f"{', '.join(block.places)}: left out ({dict(block.skipped)}); mend it, or take it away"
                )
            yield from block.records
            position = block.next
