"""What the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sigma.config.option import opt


@dataclass(frozen=True)
class DataSection:
    """Source, tokenizer, packing and the size of a batch."""

    data_backend: Literal["bundled", "files", "fineweb", "cosmopedia", "commoncrawl", "hybrid"] = opt(
        "bundled",
        "Where natural text comes from: bundled, your own files, or the network (hybrid: all three sources).",
    )
    data_dir: Path = opt(  # noqa: RUF009 - opt makes a field
        Path("data"), "Folder of --data-backend files: txt, md, jsonl (.gz, .zst) and parquet files."
    )
    fineweb_config: str = opt("sample-10BT", "Part of FineWeb: sample-10BT, sample-100BT, sample-350BT or a crawl.")
    fineweb_min_score: float = opt(
        4.0, "Smallest educational score; 0 takes FineWeb, anything else FineWeb-Edu.", low=0, high=5
    )
    cosmopedia_config: str = opt(
        "cosmopedia-v2", "Part of Cosmopedia: cosmopedia-v2, or one of the first version like web_samples_v2."
    )
    commoncrawl_crawls: str = opt("latest", "Crawls to read, like CC-MAIN-2025-33,CC-MAIN-2025-30.")
    commoncrawl_latest_crawls: int = opt(2, "Crawls that `latest` stands for.", low=1, high=100)
    commoncrawl_wet_paths_per_crawl: int = opt(256, "Files to read of each crawl, drawn by the seed.", low=1)
    stream_shuffle_buffer: int = opt(
        4096, "Records that a streamed source reads and shuffles together.", low=1, high=65536
    )
    tokenizer: Literal["bpe8k", "bytes"] | Path = opt(  # noqa: RUF009 - opt makes a field
        "bpe8k", "The bundled 8k BPE, raw bytes, or a tokenizer.json (byte-level BPE)."
    )
    seq_len: int | None = opt(None, "Tokens of one packed row.", low=8, high=1048576)
    batch_size: int | None = opt(None, "Rows of one optimizer step (the global batch).", low=1, high=65536)
    micro_batch_size: int | None = opt(None, "Rows of one forward pass; halved on out-of-memory.", low=1)
    synthetic_ratio: float = opt(
        0.05, "Share of tokens from the arithmetic, parity and recall generators.", low=0, high=1
    )
    code_ratio: float = opt(0.15, "Share of tokens from the bundled code.", low=0, high=1)
    fineweb_ratio: float = opt(0.7, "FineWeb's share of hybrid's hub text; Cosmopedia has the rest.", low=0, high=1)
    commoncrawl_ratio: float = opt(0.7, "Common Crawl's share of hybrid's natural text.", low=0, high=1)
    bootstrap_seed_batches: int | None = opt(
        None, "Batches of bundled text at the beginning, before the network is needed.", low=0, high=10**9
    )
    source_read_timeout_sec: float = opt(
        2.5, "Longest wait for sources in one batch; then another source gives instead.", low=0, high=3600
    )
    source_resume_timeout_sec: float = opt(
        120.0, "Longest wait, on resume, for a source that had answered before.", low=0, high=86400
    )
    num_workers: int = opt(
        0,
        "Threads that filter and tokenise texts; 0: the data thread does, fastest on 2 cores.",
        low=0,
        high=256,
    )
    source_prefetch: int = opt(
        8, "Batches prepared ahead by the data thread; 0 prepares them in the loop.", low=0, high=1024
    )
    val_max_tokens: int = opt(
        16384, "Tokens of a validation during training (the final one reads everything).", low=256
    )
    languages: str = opt("en", "Languages of web pages to keep, like en,fr (ISO 639 codes); any keeps all.")
    contamination_file: Literal["bundled"] | Path = opt(  # noqa: RUF009
        "bundled", "Hashes of further held-out texts; documents that share 13 words with one are dropped."
    )
    dedup_window_size: int = opt(
        65536, "Near-duplicates are looked for among this many documents; 0 looks for none.", low=0, high=2**22
    )
    dedup_normalize_chars: int = opt(
        4096, "Characters at the beginning of a document that near-duplicates are recognised by.", low=64, high=2**20
    )
