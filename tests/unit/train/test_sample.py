"""Samples: the same draws every time, and nothing of the training changes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sigma.train.sample import Sampler


class Letters:
    """Ids 3.. are the bytes."""

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + 3

    def decode(self, ids: list[int]) -> str:
        return bytes(i - 3 for i in ids if i >= 3).decode("utf-8", "replace")


class RandomWriter(torch.nn.Module):
    """`generate` draws from the global generator, as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def generate(self, **arguments: Any) -> torch.Tensor:
        self.calls.append(arguments)
        assert not self.training
        ids = arguments["input_ids"]
        new = torch.randint(100, 120, (ids.size(0), arguments["max_new_tokens"]))
        return torch.cat([ids, new], dim=1)


def make(tmp_path: Path, model: RandomWriter, seed: int = 1, tokens: int = 5) -> Sampler:
    options: dict[str, Any] = {"device": torch.device("cpu"), "bf16": False, "seed": seed, "tokens": tokens}
    return Sampler(model, Letters(), tmp_path, prompts=["a", "bcd"], **options)


def test_samples_are_written_and_named_in_the_row(tmp_path: Path) -> None:
    row = make(tmp_path, RandomWriter()).write(12)
    text = (tmp_path / row["file"]).read_text()
    assert row["file"] == "samples/step-000000012.txt"
    assert [len(t) for t in row["texts"]] == [5, 5]
    assert all(prompt in text and sample in text for prompt, sample in zip(row["prompts"], row["texts"], strict=True))


def test_draws_depend_on_the_seed_alone_and_leave_the_training_generator(tmp_path: Path) -> None:
    model = RandomWriter()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = make(tmp_path, model).generate()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert make(tmp_path, model).generate() == first
    assert make(tmp_path, model, seed=2).generate() != first


def test_prompts_are_padded_on_the_left_and_begin_with_bos(tmp_path: Path) -> None:
    model = RandomWriter()
    make(tmp_path, model).generate()
    call = model.calls[0]
    assert call["input_ids"].tolist() == [[0, 0, 1, 100], [1, 101, 102, 103]]
    assert call["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]


def test_the_mode_of_the_model_comes_back(tmp_path: Path) -> None:
    model = RandomWriter().train()
    make(tmp_path, model).generate()
    assert model.training


def test_sample_tokens_is_the_length(tmp_path: Path) -> None:
    assert [len(text) for text in make(tmp_path, RandomWriter(), tokens=9).generate()] == [9, 9]
