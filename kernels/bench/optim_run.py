"""One run of the optimizer benchmark: the program's own trainer, without checkpoints, measured."""

from __future__ import annotations

import math
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from record import commit
from torch import Tensor

from sigma.build import build_trainer
from sigma.config.parse import parse
from sigma.config.presets import resolve
from sigma.optim.blocks import BlockBatch
from sigma.optim.matrix import Step, Update
from sigma.train.feature import StepState
from sigma.train.loop import Trainer

WARM_UP = 10
"""Steps that no time is taken of in a run of the plan."""
_batches: dict[str, list[Any]] = {}


class RandomShares:
    """A placebo for credit: shares that are drawn once, with the total of the base optimizer."""

    def __init__(self, spread: float, seed: int) -> None:
        self._spread, self._generator = spread, torch.Generator().manual_seed(seed)
        self._shares: dict[int, Tensor] = {}

    def prepare(self, batch: BlockBatch) -> None:
        """Draw the shares of a batch; their logarithms add up to zero."""
        drawn = self._spread * torch.randn(batch.count, generator=self._generator)
        self._shares[id(batch)] = (drawn - drawn.mean()).exp().to(batch.device)

    def begin(self, found_inf: Tensor | None) -> None:
        """Every step does the same."""

    def __call__(self, batch: BlockBatch, update: Update, step: Step) -> Tensor:
        """The shares."""
        return self._shares[id(batch)]

    def phase(self, number: int) -> None:
        """Every step does the same."""

    def metrics(self) -> dict[str, Tensor | float]:
        """Nothing."""
        return {}


def execute(flags: str, random_shares: float = 0.0, warm_up: int = WARM_UP) -> dict[str, Any]:
    """Train with `flags`; a row with `status`, losses, times after `warm_up` steps and bytes. An error is a row too."""
    started = time.perf_counter()
    row: dict[str, Any] = {"flags": " ".join(flags.split()), **machine()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            row |= _train(flags, Path(folder), random_shares, warm_up)
    except (RuntimeError, ValueError) as error:
        row |= {"status": f"{type(error).__name__}: {error}"[:300]}
    return row | {"seconds": time.perf_counter() - started}


def _train(flags: str, folder: Path, random_shares: float, warm_up: int) -> dict[str, Any]:
    memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else None
    config = resolve(parse([*flags.split(), "--output-dir", str(folder)]).config, memory_gb)
    trainer = build_trainer(config)
    try:
        matrix = trainer.stepper.optimizers.matrix
        if random_shares and matrix is not None:
            matrix.allocation = RandomShares(random_shares, config.run.seed)
        batches = _first_batches(trainer)
        losses, phases = _steps(trainer, batches, warm_up)
        val = trainer.evaluator.evaluate()
    finally:
        trainer.close()
    tail = losses[-max(1, len(losses) // 20) :]
    train_loss = sum(tail) / len(tail)
    parameters = trainer.stepper.optimizers.parameters.values()
    state = trainer.stepper.optimizers.tensors().values()
    last = {name: float(value) for name, value in trainer.features.columns().items() if name.endswith("calls")}
    return {
        "status": "ok" if math.isfinite(val["val_loss"]) else "diverged",
        "val_loss": val["val_loss"],
        "train_loss": train_loss,
        "steps": len(losses),
        "tokens": sum(batch.tokens for batch in batches),
        "parameters": sum(p.numel() for p in parameters),
        "state_bytes_per_parameter": sum(t.nbytes for t in state) / sum(p.numel() for p in parameters),
        **phases,
        "calls": last,
        "metrics": {name: float(value) for name, value in trainer.last_row.items()},
    }


def _first_batches(trainer: Trainer) -> list[Any]:
    """The batches of the whole run, made once for all runs of one seed and length."""
    config = trainer.config
    key = f"{config.run.seed} {trainer.steps} {config.data}"
    if key not in _batches:
        _batches.clear()
        _batches[key] = [trainer.data.next_batch() for _ in range(trainer.steps)]
    return _batches[key]


def _steps(trainer: Trainer, batches: list[Any], warm_up: int) -> tuple[list[float], dict[str, float]]:
    losses: list[Tensor] = []
    s = StepState(0, None)
    for number, batch in enumerate(batches, start=1):
        if number == warm_up + 1:
            trainer.clock.read()
        s = StepState(number, batch)
        with trainer.clock("features"):
            trainer.features.run("on_batch", s)
        losses.append(trainer.stepper.train(s, trainer._scale(number)).loss)
        with trainer.clock("features"):
            trainer.features.run("after_step", s)
    phases = trainer.clock.read()
    timed = len(batches) - warm_up
    measured = {f"{name}_ms": 1e3 * phases[name] / timed for name in ("opt_step", "features")}
    measured["step_ms"] = 1e3 * sum(phases.values()) / timed
    if torch.cuda.is_available():
        measured["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    trainer.last_row = {**s.metrics, **trainer.stepper.optimizers.metrics()}
    return [float(loss) for loss in losses], measured


@cache
def machine() -> dict[str, str]:
    """What a row says about where it comes from."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"device": device, "torch": str(torch.__version__), "commit": commit()}
