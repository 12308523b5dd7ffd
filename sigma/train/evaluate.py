"""Bits per byte of held-out text, and what simpler models need for the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sigma.core.files import write_atomic
from sigma.core.strict_json import StrictJsonError, dumps, load_file
from sigma.data.baselines import bigram_bpb, gzip_bpb, xz_bpb
from sigma.data.stream import BatchStream
from sigma.data.validation import Validation, ValidationBatch
from sigma.train.metrics import bits_per_byte
from sigma.train.sample import evaluating
from sigma_kernels.cross_entropy.op import cross_entropy

FINAL_NAME = "final.json"
EARLY = 16  # positions with less context than this
LATE = 128  # positions with at least this much
BASELINE_TOKENS = 20_000_000  # of training text for the bigram; many epochs of one corpus would only repeat its counts


@dataclass(frozen=True)
class EvaluationSettings:
    """`rows` and `length` of a forward pass, `max_tokens` of a validation during training, `batch_tokens` of a step."""

    device: torch.device
    bf16: bool
    rows: int
    length: int
    max_tokens: int
    batch_tokens: int


class Evaluator:
    """Scores every held-out text token once. `fresh_stream` gives the training data from its beginning."""

    def __init__(
        self,
        model: Any,
        validation: Validation,
        run_dir: Path,
        settings: EvaluationSettings,
        *,
        vocabulary: int,
        fresh_stream: Callable[[], BatchStream],
    ) -> None:
        self._model, self._validation, self._path, self._settings = model, validation, run_dir / FINAL_NAME, settings
        self._vocabulary, self._fresh_stream = vocabulary, fresh_stream

    def evaluate(self) -> dict[str, Any]:
        """`val_bpb` and its position buckets over the fixed beginning of the held-out text."""
        row = self._score(self._settings.max_tokens, lambda: False)
        assert row is not None
        return row

    def final(self, step: int, tokens: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """The same over all held-out text, with the baselines over the same bytes; written to `final.json`.

        `tokens` is what the model has seen by `step`, whatever the batch sizes were on the way. Returns None, and
        writes nothing, when `should_stop` became true.
        """
        row = self._score(None, should_stop)
        if row is None or should_stop():
            return None
        text = self._validation.text()
        row |= {"final": True, "gzip_bpb": gzip_bpb(text), "xz_bpb": xz_bpb(text)}
        batches = -(-min(tokens, BASELINE_TOKENS) // self._settings.batch_tokens)
        row["witten_bell_bpb"] = bigram_bpb(self._fresh_stream(), batches, self._validation, self._vocabulary)
        row["witten_bell_tokens"] = batches * self._settings.batch_tokens
        write_atomic(self._path, (dumps({"step": step, **row}, indent=2) + "\n").encode())
        return row

    def is_final(self, step: int) -> bool:
        """Whether `final.json` is about the model after `step`."""
        try:
            final = load_file(self._path)
        except (FileNotFoundError, StrictJsonError):  # a damaged file is written again by another validation
            return False
        return isinstance(final, dict) and final.get("step") == step

    def forget_final(self) -> None:
        """Remove `final.json` of an earlier run."""
        self._path.unlink(missing_ok=True)

    def _score(self, max_tokens: int | None, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        start = time.perf_counter()
        nats = torch.zeros(3, dtype=torch.float64, device=self._settings.device)
        text_bytes = torch.zeros(3, dtype=torch.int64)
        tokens = 0
        batches = self._validation.batches(self._settings.rows, self._settings.length, max_tokens=max_tokens)
        with evaluating(self._model):
            for batch in batches:
                if should_stop():
                    return None
                buckets = _buckets(batch.positions_BT)
                nats += self._bucket_nats(batch, buckets)
                text_bytes += torch.stack([batch.label_bytes_BT[mask].sum() for mask in buckets])
                tokens += batch.tokens
        bpb = [bits_per_byte(n, b) for n, b in zip(nats.tolist(), text_bytes.tolist(), strict=True)]
        return {
            "val_bpb": bpb[0],
            "bpb_first_16": bpb[1],
            "bpb_from_128": bpb[2],
            "val_loss": float(nats[0]) / tokens,
            "val_tokens": tokens,
            "val_bytes": int(text_bytes[0]),
            "val_s": time.perf_counter() - start,
        }

    def _bucket_nats(self, batch: ValidationBatch, buckets: list[Tensor]) -> Tensor:
        device = self._settings.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._settings.bf16):
            out = self._model(
                input_ids=batch.input_ids_BT.to(device),
                segment_ids=batch.segments_BT.to(device),
                cu_seqlens=batch.cu_seqlens.to(device),
                use_cache=False,
            )
        labels = batch.labels_BT.to(device)
        # -100 (padding) scores 0 here and is in no bucket
        nats_BT = cross_entropy(out.logits, labels)
        return torch.stack([nats_BT[mask.to(device)].double().sum() for mask in buckets])


def _buckets(positions_BT: Tensor) -> list[Tensor]:
    """Masks of all text positions, of those with little context, of those with much; padding has position -1."""
    text = positions_BT >= 0
    return [text, text & (positions_BT < EARLY), positions_BT >= LATE]
