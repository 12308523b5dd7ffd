"""A trainer with its real parts and a model of a few thousand parameters, and what the tests read of its runs."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sigma.build import build_trainer
from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.data import DataSection
from sigma.config.model import ModelSection
from sigma.config.optim import OptimSection
from sigma.config.presets import resolve
from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma.config.train import TrainSection
from sigma.core.stop import StopRequest
from sigma.core.strict_json import loads
from sigma.data.record import Record
from sigma.data.validation import Validation
from sigma.train.feature import StepState
from sigma.train.loop import Trainer

MODEL = {
    "d_model": 16, "n_layers": 2, "mamba_ratio": 1, "attention_ratio": 1, "ssm_state": 8, "ssm_head_dim": 8,
    "mimo_rank": 2, "ssm_chunk": 16, "n_heads": 2, "attention_head_dim": 8, "kv_latent_dim": 8, "d_ff": 8,
    "n_routed_experts": 4, "moe_top_k": 2,
}  # fmt: skip
DATA = {
    "seq_len": 24, "batch_size": 4, "micro_batch_size": 2, "tokenizer": "bytes", "val_max_tokens": 256,
    "source_prefetch": 2,
}  # fmt: skip
RUN = {
    "device": "cpu", "log_interval": 2, "save_interval": 3, "save_minutes": 0.0, "eval_interval": 0,
    "sample_interval": 0, "sample_tokens": 3,
}  # fmt: skip
TRAIN = {"steps": 6, "lr": 4e-3, "adam_lr": 3e-3}
ON_GPU = {"device": "cuda", "deterministic": True}
LEAN = {
    "optimizer": "normuon", "momentum_dtype": "int8", "weight_dtype": "bf16_residual", "precision": "bf16",
    "cautious_weight_decay": True,
}  # fmt: skip
SECTIONS = {
    "run": (RunSection, RUN),
    "model": (ModelSection, MODEL),
    "data": (DataSection, DATA),
    "train": (TrainSection, TRAIN),
    "optim": (OptimSection, {}),
    "curvature": (CurvatureSection, {}),
    "c3o": (C3OSection, {}),
}
Make = Callable[..., Trainer]


class ShortValidation(Validation):
    """The beginnings of two held-out passages instead of a megabyte."""

    def documents(self, kind: Any = "natural") -> list[Record]:
        return [replace(record, text=record.text[:200]) for record in super().documents(kind)[:2]]


def build(run_dir: Path, stop: StopRequest | None = None, **flags: Any) -> Trainer:
    """A trainer for this folder; keyword arguments are flags of any section."""
    sections = {}
    for name, (kind, values) in SECTIONS.items():
        own = {flag: flags.pop(flag) for flag in list(flags) if flag in kind.__dataclass_fields__}
        sections[name] = kind(**({"output_dir": run_dir} if name == "run" else {}) | values | own)
    assert not flags
    memory_gb = 100.0 if sections["run"].device == "cuda" else None
    return build_trainer(resolve(RunConfig(**sections), memory_gb), stop=stop)


def rows(trainer: Trainer, kind: str = "train") -> list[dict[str, Any]]:
    lines = (trainer.run_dir / "metrics.jsonl").read_bytes().splitlines()
    return [row for row in map(loads, lines) if row["kind"] == kind]


def digest(trainer: Trainer, step: int) -> str:
    return hashlib.sha256((trainer.run_dir / f"checkpoints/step-{step:09d}/model.safetensors").read_bytes()).hexdigest()


def train_steps(trainer: Trainer, steps: int) -> list[float]:
    """Losses of single steps, without the loop."""
    losses = []
    for step in range(1, steps + 1):
        s = StepState(step, trainer.data.next_batch())
        losses.append(float(trainer.stepper.train(s, 1.0).loss))
    return losses


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
