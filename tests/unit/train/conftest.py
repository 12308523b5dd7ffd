"""A model with the trainer's seam and nothing else, and batches for it: every test of the loop is milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH = 23, 8
CPU = torch.device("cpu")


class TinyModel(nn.Module):
    """Embedding, one hidden matrix, head; a router-like buffer that moves in every forward and update."""

    load: Tensor
    bias: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=generator))
        self.hidden = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator) * WIDTH**-0.5)
        self.norm = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("load", torch.zeros(()))
        self.register_buffer("bias", torch.zeros(()))
        self.rows: list[int] = []
        self.fail_above: int | None = None
        self.aux_weight = 0.0
        self.poison = False

    def forward(self, input_ids: Tensor, shift_labels: Tensor | None = None, **kwargs: Any) -> Any:
        self.rows.append(input_ids.size(0))
        if self.training:
            self.load += input_ids.size(0)
        if self.fail_above is not None and input_ids.size(0) > self.fail_above:
            raise torch.OutOfMemoryError("injected")
        x = F.embedding(input_ids, self.embed) * self.norm
        x = x + torch.tanh(x @ self.hidden)
        logits = x @ self.embed.T
        if self.poison:
            logits = logits * torch.nan
        self._aux = self.aux_weight * self.hidden.square().mean()
        loss = None
        if shift_labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), ignore_index=-100)
        return SimpleNamespace(loss=loss, logits=logits)

    def aux_loss(self) -> Tensor:
        return self._aux

    def drop_graph(self) -> None:
        self._aux = None

    def metrics(self) -> dict[str, Tensor]:
        return {"router_temperature": self.bias + 1}

    def after_update(self) -> None:
        self.bias += 0.25 * self.load
        self.load.zero_()

    def parameter_roles(self) -> dict[str, str]:
        return {"embed": "embedding", "hidden": "hidden", "norm": "vector"}


@dataclass
class TinyBatch:
    """What the trainer reads of a batch."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    segments_BT: Tensor
    records: tuple[Any, ...]
    tokens: int
    text_bytes: int


def make_batch(seed: int = 0, rows: int = 6, length: int = 5, *, ragged: bool = False) -> TinyBatch:
    """Ids that follow a rule (next = 3 id + 1), so that the loss can fall; `ragged` hides some labels."""
    start = torch.randint(VOCABULARY, (rows, 1), generator=torch.Generator().manual_seed(seed))
    ids = [start]
    for _ in range(length):
        ids.append((3 * ids[-1] + 1) % VOCABULARY)
    tokens = torch.cat(ids, dim=1)
    labels = tokens[:, 1:].clone()
    if ragged:
        for row in range(rows):
            labels[row, : row % length] = -100
    count = int((labels != -100).sum())
    segments = torch.zeros(rows, length, dtype=torch.int32)
    return TinyBatch(tokens[:, :-1], labels, segments, (("tiny", str(seed)),), count, 2 * count)


class TinyStream:
    """Batch n is `make_batch(n)`; the position is n."""

    def __init__(self) -> None:
        self.position = 0
        self.closed = False

    def next_batch(self) -> TinyBatch:
        self.position += 1
        return make_batch(self.position)

    def columns(self) -> dict[str, int]:
        return {"data_tokens_tiny": self.position}

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The tiny model, its batches and its stream."""
    return SimpleNamespace(Model=TinyModel, Stream=TinyStream, batch=make_batch, vocabulary=VOCABULARY)
