"""The one way in which an optional mechanism joins training.

A hook returns `Work` when the mechanism did something and None when it did not. The set counts, times and names what
the hooks return, so that a feature can neither forget nor embellish it. A disabled feature is not constructed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Work:
    """What a hook did: `calls` pieces of work, of which `effective` (a number or device scalar) changed an outcome."""

    calls: int
    effective: int | Tensor
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass
class StepState:
    """What one optimizer step has produced so far. `loss` is the current micro-batch's, before its backward."""

    step: int
    batch: Any
    loss: Tensor | None = None
    metrics: dict[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What features may use: the model, the loss or the logits of some rows of a batch, and a way to undo a probe."""

    model: Any
    loss: Callable[[Any, slice], Tensor]
    undone: Callable[[], AbstractContextManager[None]]
    logits: Callable[[Any, slice], Tensor]


class Feature:
    """Base class: override only the hooks that are needed."""

    name: ClassVar[str]

    def first_due(self) -> int | None:
        """First step at which the feature must have worked; None if it can be idle for ever."""
        return 1

    def setup(self, ctx: Context) -> None: ...
    def on_batch(self, s: StepState) -> Work | None: ...
    def on_loss(self, s: StepState) -> Work | None: ...
    def on_retry(self) -> None: ...
    def after_step(self, s: StepState) -> Work | None: ...
    def close(self) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class FeatureSet:
    """Runs hooks in declared order; counts calls and effective calls, times, and names metrics `<feature>_<metric>`.

    `known` are the names that get `feature_X_*` columns even when the feature is off. Counters cover committed steps:
    they live in the checkpoint, and an attempt at a step that ran out of memory does not count.
    """

    def __init__(self, features: Iterable[Feature], known: Iterable[str] = ()) -> None:
        self._features = list(features)
        self._known = list(dict.fromkeys([*known, *(f.name for f in self._features)]))
        self._calls = dict.fromkeys(self._known, 0)
        self._effective = dict.fromkeys(self._known, 0)
        self._pending: dict[str, Tensor] = {}  # effective calls that the device still holds
        self._attempt: list[tuple[str, Work]] = []  # work of `on_loss`, counted when the attempt has succeeded
        self.seconds = {f.name: 0.0 for f in self._features}

    def setup(self, ctx: Context) -> None:
        """Let every feature attach itself, in order."""
        for feature in self._features:
            feature.setup(ctx)

    def run(self, hook: str, s: StepState) -> None:
        """Run one hook of every feature. Exceptions go on: a feature that fails stops the run."""
        for feature in self._features:
            start = time.perf_counter()
            work = getattr(feature, hook)(s)
            self.seconds[feature.name] += time.perf_counter() - start
            if work is not None:
                self._attempt.append((feature.name, work))
                s.metrics.update({f"{feature.name}_{key}": value for key, value in work.metrics.items()})
        if hook != "on_loss":
            self._commit()

    def retry(self) -> None:
        """The same batch is trained again in smaller parts: forget what the failed attempt did."""
        self._attempt.clear()
        for feature in self._features:
            feature.on_retry()

    def _commit(self) -> None:
        for name, work in self._attempt:
            self._count(name, work)
        self._attempt.clear()

    def _count(self, name: str, work: Work) -> None:
        self._calls[name] += work.calls
        if isinstance(work.effective, Tensor):
            held = self._pending.get(name)
            value = work.effective.detach().to(torch.int64)
            self._pending[name] = value if held is None else held + value
        else:
            self._effective[name] += work.effective

    def _settle(self) -> None:
        """Read the counts that the device still holds."""
        for name, value in self._pending.items():
            self._effective[name] += int(value)
        self._pending.clear()

    def columns(self) -> dict[str, float]:
        """Columns `feature_X_{enabled,calls,effective_calls,s}` of every known feature. Waits for the device."""
        self._settle()
        row: dict[str, float] = {}
        for name in self._known:
            row[f"feature_{name}_enabled"] = int(name in self.seconds)
            row[f"feature_{name}_calls"] = self._calls[name]
            row[f"feature_{name}_effective_calls"] = self._effective[name]
            row[f"feature_{name}_s"] = self.seconds.get(name, 0.0)
        return row

    def idle(self, last_step: int) -> list[str]:
        """Enabled features that were due by `last_step` and never worked."""
        due = ((f.name, f.first_due()) for f in self._features)
        return [name for name, first in due if first is not None and first <= last_step and not self._calls[name]]

    def close(self) -> None:
        """Close every feature, the last one first."""
        for feature in reversed(self._features):
            feature.close()

    def state_dict(self) -> dict[str, Any]:
        """Counters and the features' own state, as JSON. Waits for the device."""
        self._settle()
        own = {f.name: f.state_dict() for f in self._features}
        return {"calls": dict(self._calls), "effective": dict(self._effective), "own": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; a feature that the checkpoint does not know starts at zero."""
        self._pending.clear()
        for name in self._known:
            self._calls[name] = state["calls"].get(name, 0)
            self._effective[name] = state["effective"].get(name, 0)
        for feature in self._features:
            if feature.name in state["own"]:
                feature.load_state_dict(state["own"][feature.name])
