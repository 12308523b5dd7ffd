"""How the weights move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sigma.config.option import opt


@dataclass(frozen=True)
class TrainSection:
    """Length, precision, optimizer and schedule."""

    steps: int | None = opt(None, "Optimizer steps of the whole run.", low=1, high=10**9)
    precision: Literal["auto", "bf16", "fp32"] = opt("auto", "Arithmetic of the matrix products; auto is bf16 on CUDA.")
    grad_clip: float = opt(1.0, "Largest norm of the gradient; 0 switches clipping off.", low=0)
    optimizer: Literal["adamw", "muon", "normuon", "adamuon", "soapmuon", "c3o", "gnprox"] = opt(
        "muon", "What owns the hidden matrices; the rest is AdamW's."
    )
    lr: float | None = opt(None, "Peak learning rate of the hidden matrices.", low=0, high=10)
    adam_lr: float | None = opt(
        None, "Peak learning rate of embeddings, vectors and everything AdamW owns.", low=0, high=10
    )
    weight_decay: float = opt(0.1, "Decoupled weight decay of matrices.", low=0, high=1)
    warmup_share: float = opt(0.02, "Share of the steps that warm the learning rate up.", low=0, high=1)
    decay_share: float = opt(0.4, "Share of the steps at the end that decay the learning rate to zero.", low=0, high=1)
    torch_compile: bool = opt(False, "Compile the model with torch.compile (CUDA only).")
    instant_enabled: bool = opt(True, "INSTANT: save each tensor once and recompute norms and activations exactly.")
    max_skipped_steps: int = opt(
        20, "Updates in a row that may be skipped for a non-finite gradient before the run stops.", low=1
    )
