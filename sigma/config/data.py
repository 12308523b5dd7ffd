"""What the model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sigma.config.option import opt


@dataclass(frozen=True)
class DataSection:
    """Source, tokenizer, packing and the size of a batch."""

    data_backend: Literal["bundled"] = opt("bundled", "Where texts come from.")
    tokenizer: Literal["bpe8k", "bytes"] = opt("bpe8k", "The bundled 8k BPE, or raw bytes.")
    seq_len: int | None = opt(None, "Tokens of one packed row.", low=8, high=1048576)
    batch_size: int | None = opt(None, "Rows of one optimizer step (the global batch).", low=1, high=65536)
    micro_batch_size: int | None = opt(None, "Rows of one forward pass; halved on out-of-memory.", low=1)
    synthetic_ratio: float = opt(
        0.05, "Share of tokens from the arithmetic, parity and recall generators.", low=0, high=1
    )
    code_ratio: float = opt(0.15, "Share of tokens from the bundled code.", low=0, high=1)
    source_prefetch: int = opt(
        8, "Batches prepared ahead by the data thread; 0 prepares them in the loop.", low=0, high=1024
    )
    val_max_tokens: int = opt(
        16384, "Tokens of a validation during training (the final one reads everything).", low=256
    )
