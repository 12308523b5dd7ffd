"""From the configuration to the stream: which sources a backend has, and their shares."""

from __future__ import annotations

from pathlib import Path

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma.data.corpus import CorpusSource, load_corpus
from sigma.data.feed import Feed
from sigma.data.generators import FAMILIES, GeneratorSource
from sigma.data.journal import FILE_NAME
from sigma.data.mixture import Group
from sigma.data.outages import Limits
from sigma.data.quality.gate import build_gate
from sigma.data.sources import SourceName, text_source
from sigma.data.stream import BatchStream
from sigma.data.stream_settings import StreamSettings
from sigma.data.tokenizer import Tokenizer

SMALLEST_SHARE = 1e-9  # 1 - 0.9 - 0.1 is not exactly 0


def build_stream(
    data: DataSection,
    seed: int,
    tokenizer: Tokenizer,
    batch_size: int,
    *,
    run_dir: Path | None = None,
    fresh: bool = False,
    rank: int = 0,
    world: int = 1,
) -> BatchStream:
    """The stream of a resolved data section: natural text, code and the generators at their shares of tokens.

    `batch_size` is the number of rows of a batch, each of `data.seq_len` positions; rank `rank` of `world` gets its
    rows. `run_dir` has the journal; a `fresh` run does not go on with one that stands there. Raises ConfigError when
    the shares add up to more than 1, when `seq_len` is not resolved, and for a --data-dir without texts.
    """
    if data.seq_len is None:
        raise ConfigError("--seq-len has no value; choose a preset or give a number.")
    groups = [group for group in _groups(data, seed, tokenizer) if group.share > SMALLEST_SHARE]
    settings = StreamSettings(
        rows=batch_size,
        length=data.seq_len,
        prefetch=data.source_prefetch,
        workers=data.num_workers,
        bootstrap=0 if data.data_backend == "files" else data.bootstrap_seed_batches or 0,
        dedup_window=data.dedup_window_size if data.data_backend != "bundled" else 0,
        rank=rank,
        world=world,
        limits=Limits(data.source_read_timeout_sec, data.source_resume_timeout_sec),
        journal=None if run_dir is None else run_dir / FILE_NAME,
        fresh=fresh,
    )
    return BatchStream(groups, tokenizer, settings, identity=f"{load_corpus().fingerprint} {seed}")


def _groups(data: DataSection, seed: int, tokenizer: Tokenizer) -> list[Group]:
    natural = 1 - data.code_ratio - data.synthetic_ratio
    if natural < -SMALLEST_SHARE:
        raise ConfigError(
            f"--code-ratio {data.code_ratio} and --synthetic-ratio {data.synthetic_ratio} add up to more than 1; "
            "lower one of them."
        )
    corpus = load_corpus()
    bundled = Feed(CorpusSource("natural", corpus, seed), tokenizer)
    synthetic = data.synthetic_ratio / len(FAMILIES)
    return [
        _natural(data, seed, tokenizer, natural, bundled),
        Group(data.code_ratio, (Feed(CorpusSource("code", corpus, seed), tokenizer),)),
        *(Group(synthetic, (Feed(GeneratorSource(family, seed), tokenizer),)) for family in FAMILIES),
    ]


def _natural(data: DataSection, seed: int, tokenizer: Tokenizer, share: float, bundled: Feed) -> Group:
    """The natural text: bundled, or what the backend names with the bundled text as its standby."""
    if data.data_backend == "bundled" or share <= SMALLEST_SHARE:
        return Group(share, (bundled,))
    gate, strict = build_gate(data), data.data_backend == "files"
    shares = natural_shares(data)
    feeds = [Feed(text_source(name, data, seed), tokenizer, gate, strict=strict) for name in shares]
    return Group(share, tuple(feeds), tuple(shares.values()), standby=bundled)


def natural_shares(data: DataSection) -> dict[SourceName, float]:
    """Share of each source that is not bundled in the natural text of a backend."""
    if data.data_backend != "hybrid":
        return {} if data.data_backend == "bundled" else {data.data_backend: 1.0}
    hub = 1 - data.commoncrawl_ratio
    shares: dict[SourceName, float] = {
        "fineweb": hub * data.fineweb_ratio,
        "cosmopedia": hub * (1 - data.fineweb_ratio),
        "commoncrawl": data.commoncrawl_ratio,
    }
    return {name: share for name, share in shares.items() if share > SMALLEST_SHARE}
