"""Text samples: the same prompts and the same draws at every step, so that only the model differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sigma.core.files import write_atomic

FOLDER = "samples"
PROMPTS = ("The ", "It was in the morning that ", "def main():\n", "12 + 7 = ")
TEMPERATURE = 0.8
TOP_P = 0.95


class TextTokenizer(Protocol):
    """Text to ids and back; ids 0 pad, 1 bos, 2 eos."""

    def encode(self, text: str) -> Any: ...
    def decode(self, ids: Any) -> str: ...


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the mode before comes back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded global generators inside; those of the training come back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class Sampler:
    """Writes `samples/step-*.txt`. `bf16` runs the model as in training."""

    def __init__(
        self,
        model: Any,
        tokenizer: TextTokenizer,
        run_dir: Path,
        *,
        device: torch.device,
        bf16: bool,
        seed: int,
        tokens: int,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        self._model, self._tokenizer, self._folder = model, tokenizer, run_dir / FOLDER
        self._device, self._bf16, self._seed, self._tokens = device, bf16, seed, tokens
        self._prompts = list(prompts)

    def write(self, step: int) -> dict[str, Any]:
        """Continue every prompt by up to `--sample-tokens` tokens; returns the row of metrics."""
        texts = self.generate()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"step-{step:09d}.txt"
        body = "\n\n".join(f"> {prompt!r}\n{text}" for prompt, text in zip(self._prompts, texts, strict=True))
        write_atomic(path, (body + "\n").encode("utf-8"))
        return {"file": f"{FOLDER}/{path.name}", "prompts": self._prompts, "texts": texts}

    def generate(self) -> list[str]:
        """One continuation per prompt; neither weights nor the training's generators change."""
        ids, mask = _left_padded([[1, *self._tokenizer.encode(prompt).tolist()] for prompt in self._prompts])
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)
        with evaluating(self._model), own_randomness(self._seed, self._device), autocast:
            out = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=self._tokens,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
            )
        return [self._tokenizer.decode(row[ids.size(1) :].tolist()) for row in out.cpu()]


def _left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids `[B, T]` and their mask; padding (id 0) stands on the left, so that every row ends where it goes on."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask
