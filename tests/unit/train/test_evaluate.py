"""Validation: bits per byte over exactly the text bytes, in position buckets, and the final comparison."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sigma.core.strict_json import load_file
from sigma.data.validation import ValidationBatch
from sigma.train.evaluate import EvaluationSettings, Evaluator

VOCABULARY, LENGTH = 8, 200
SETTINGS = EvaluationSettings(torch.device("cpu"), bf16=False, rows=2, length=LENGTH, max_tokens=100, batch_tokens=3)


class PositionModel(torch.nn.Module):
    """Gives the label `sharp[position]` more logit than every other token; the label is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.gain_T = torch.zeros(LENGTH)

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        assert not self.training
        assert not torch.is_grad_enabled()
        logits = torch.nn.functional.one_hot(input_ids, VOCABULARY) * self.gain_T[: input_ids.size(1), None]
        return SimpleNamespace(logits=logits.float())


class HeldOut:
    """Two rows of `tokens` text tokens (2 bytes each); the rest is padding."""

    def __init__(self, tokens: int = LENGTH) -> None:
        self.tokens = tokens
        self.asked: list[int | None] = []

    def batches(self, rows: int, length: int, max_tokens: int | None = None) -> Iterator[ValidationBatch]:
        self.asked.append(max_tokens)
        for seed in (0, 1):
            ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))
            labels, positions = ids.clone(), torch.arange(length, dtype=torch.int32)[None].clone()
            labels[:, self.tokens :], positions[:, self.tokens :] = -100, -1
            text = (labels >= 0).to(torch.int64) * 2
            starts = torch.tensor([0, length], dtype=torch.int32)
            segments = torch.zeros_like(positions)
            yield ValidationBatch(ids, labels, segments, positions, text, starts, self.tokens, 2 * self.tokens)

    def text(self, kind: str = "natural") -> bytes:
        return b"abcabcabc " * 40

    def windows(self, length: int, kind: str = "natural") -> Iterator[np.ndarray]:
        yield np.array([1, 2, 3, 4], dtype=np.int32)


class Stream:
    def __init__(self) -> None:
        self.given = 0

    def next_batch(self) -> Any:
        self.given += 1
        ids = torch.tensor([[1, 2, 3]])
        return SimpleNamespace(input_ids_BT=ids, labels_BT=ids + 1)

    def close(self) -> None:
        return None


def make(
    tmp_path: Path, held_out: HeldOut | None = None, stream: Stream | None = None
) -> tuple[Evaluator, PositionModel]:
    model = PositionModel().train()
    evaluator = Evaluator(
        model,
        held_out or HeldOut(),  # pyright: ignore[reportArgumentType]
        tmp_path,
        SETTINGS,
        vocabulary=VOCABULARY,
        fresh_stream=lambda: stream or Stream(),  # pyright: ignore[reportArgumentType]
    )
    return evaluator, model


def test_a_uniform_model_needs_log2_v_bits_per_token(tmp_path: Path) -> None:
    row = make(tmp_path)[0].evaluate()
    assert row["val_bpb"] == pytest.approx(math.log2(VOCABULARY) / 2)
    assert row["val_loss"] == pytest.approx(math.log(VOCABULARY))
    assert (row["val_tokens"], row["val_bytes"]) == (2 * LENGTH, 4 * LENGTH)


def test_padding_is_not_scored(tmp_path: Path) -> None:
    evaluator, model = make(tmp_path, HeldOut(tokens=50))
    model.gain_T[50:] = -100.0  # would cost dearly
    row = evaluator.evaluate()
    assert row["val_bpb"] == pytest.approx(math.log2(VOCABULARY) / 2)
    assert math.isnan(row["bpb_from_128"])


def test_buckets_hold_the_positions_that_they_name(tmp_path: Path) -> None:
    evaluator, model = make(tmp_path)
    model.gain_T[:16] = 1.0
    model.gain_T[128:] = 3.0
    row = evaluator.evaluate()

    def bits(gain: float) -> float:
        return (math.log(math.exp(gain) + VOCABULARY - 1) - gain) / math.log(2) / 2

    assert row["bpb_first_16"] == pytest.approx(bits(1.0), rel=1e-6)
    assert row["bpb_from_128"] == pytest.approx(bits(3.0), rel=1e-6)
    mixed = (16 * bits(1.0) + 112 * bits(0.0) + 72 * bits(3.0)) / 200
    assert row["val_bpb"] == pytest.approx(mixed, rel=1e-6)


def test_the_mode_of_the_model_comes_back(tmp_path: Path) -> None:
    evaluator, model = make(tmp_path)
    evaluator.evaluate()
    assert model.training


def test_training_scores_a_part_and_the_end_everything(tmp_path: Path) -> None:
    held_out = HeldOut()
    evaluator, _ = make(tmp_path, held_out)
    evaluator.evaluate()
    evaluator.final(1, 3, lambda: False)
    assert held_out.asked == [SETTINGS.max_tokens, None]


def test_the_final_row_is_in_final_json_with_its_baselines(tmp_path: Path) -> None:
    stream = Stream()
    evaluator, _ = make(tmp_path, stream=stream)
    row = evaluator.final(3, 9, lambda: False)
    assert row is not None
    saved = load_file(tmp_path / "final.json")
    assert saved == {"step": 3, **row}
    assert min(saved[name] for name in ("gzip_bpb", "xz_bpb", "witten_bell_bpb")) > 0
    assert stream.given == 3
    assert saved["witten_bell_tokens"] == 9
    assert evaluator.is_final(3)
    assert not evaluator.is_final(4)
    (tmp_path / "final.json").write_text("{")
    assert not evaluator.is_final(3)
    evaluator.forget_final()
    assert not evaluator.is_final(3)


def test_the_bigram_reads_a_bounded_number_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sigma.train.evaluate.BASELINE_TOKENS", 10)
    stream = Stream()
    row = make(tmp_path, stream=stream)[0].final(1000, 3000, lambda: False)
    assert row is not None
    assert (stream.given, row["witten_bell_tokens"]) == (4, 12)


def test_the_bigram_reads_as_many_tokens_as_the_model_whatever_the_batch_was(tmp_path: Path) -> None:
    row = make(tmp_path, stream=(stream := Stream()))[0].final(100, 30, lambda: False)
    assert row is not None
    assert (stream.given, row["witten_bell_tokens"]) == (10, 30)


def test_a_stop_request_leaves_no_final_result(tmp_path: Path) -> None:
    evaluator, model = make(tmp_path)
    asked = iter([False, True])
    assert evaluator.final(3, 9, lambda: next(asked)) is None
    assert not (tmp_path / "final.json").exists()
    assert model.training
