"""The plug of differential attention: how often it ran in training, and whether the subtraction changed the output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sigma.model.mla import DifferentialMLA
from sigma.train.feature import Context, Feature, StepState, Work


class DiffMla(Feature):
    """`calls` are forwards of differential attention layers in training.

    A forward is `effective` when its output differs from that of the first map alone, which the layer checks on the
    device: the weight lambda is not zero, and what it weighs is not zero either.
    """

    name = "diff_mla"

    def setup(self, ctx: Context) -> None:
        """Watch every differential attention layer."""
        self._changed: list[Tensor] = []
        layers = [module for module in ctx.model.modules() if isinstance(module, DifferentialMLA)]
        self._hooks = [layer.register_forward_hook(self._watch) for layer in layers]

    def _watch(self, layer: Any, args: Any, output: Any) -> None:
        if torch.is_grad_enabled():  # not a validation, a sample or a decoding step
            self._changed.append(layer.difference_changed)

    def on_batch(self, s: StepState) -> None:
        """Forget the forwards outside a step."""
        self._changed.clear()

    def on_retry(self) -> None:
        """Forget the forwards of the attempt that failed."""
        self._changed.clear()

    def after_step(self, s: StepState) -> Work | None:
        """Report the forwards of this step."""
        if not self._changed:
            return None
        work = Work(len(self._changed), torch.stack(self._changed).sum())
        self._changed.clear()
        return work

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()
