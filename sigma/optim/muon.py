"""Muon for whole matrices, fused projections and stacks of experts.

`torch.optim.Muon` takes 2-D matrices only and orthogonalises each as a whole. A fused projection is several matrices
in one tensor and a stack `[E, out, in]` is E matrices: each of those is orthogonalised by itself here. On a plain
matrix the result equals torch.optim.Muon's, bit for bit.

Muon: K. Jordan, kellerjordan.github.io/posts/muon. Update scale 0.2 sqrt(max(rows, columns)): arXiv:2502.16982, 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7


def orthogonalise(matrix: Tensor) -> Tensor:
    """Singular values of `[m, n]`, or of each matrix in `[b, m, n]`, brought near 1 by Newton-Schulz steps in bf16."""
    a, b, c = COEFFICIENTS
    multiply_add = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    tall = matrix.size(-2) > matrix.size(-1)
    x = matrix.bfloat16()
    if tall:
        x = x.mT
    # The Frobenius norm bounds the spectral one, and the iteration converges from at most 1.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def update_scale(rows: int, columns: int) -> float:
    """Factor that gives an orthogonal update the root mean square 0.2 of an AdamW update (arXiv:2502.16982, eq. 4)."""
    return 0.2 * math.sqrt(max(rows, columns))


class MuonBlocks(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, one logical matrix at a time.

    A parameter group may hold `splits`: one tuple of row counts per parameter, `()` for a parameter that is one
    matrix or one stack. Setting `found_inf` (a 0/1 device scalar, as torch's fused optimizers read it) to 1 makes
    `step` leave parameters and momentum as they are, without asking the device.

    Raises ValueError for a parameter that is neither 2-D nor 3-D, and for splits that do not add up to its rows.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "splits": None})
        for group in self.param_groups:
            group["splits"] = group["splits"] or [()] * len(group["params"])
            for parameter, splits in zip(group["params"], group["splits"], strict=True):
                _check(parameter, splits)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter, splits in zip(group["params"], group["splits"], strict=True):
                if parameter.grad is not None:
                    self._update(parameter, splits, group)
        return loss

    def _update(self, parameter: Tensor, splits: Sequence[int], group: dict[str, Any]) -> None:
        state, lr, momentum = self.state[parameter], group["lr"], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        grad = parameter.grad
        assert grad is not None
        average = torch.lerp(state["momentum_buffer"], grad, 1 - momentum)
        direction = grad.lerp(average, momentum)
        moved = parameter * (1 - lr * group["weight_decay"])
        start = 0
        for rows in splits or (parameter.size(-2),):
            block = direction.narrow(-2, start, rows)
            scale = update_scale(rows, parameter.size(-1))
            moved.narrow(-2, start, rows).add_(orthogonalise(block), alpha=-lr * scale)
            start += rows
        _store(state["momentum_buffer"], average, self.found_inf)
        _store(parameter, moved, self.found_inf)


def _store(target: Tensor, value: Tensor, found_inf: Tensor | None) -> None:
    target.copy_(value if found_inf is None else torch.where(found_inf.bool(), target, value))


def _check(parameter: Tensor, splits: Sequence[int]) -> None:
    if parameter.ndim not in (2, 3):
        raise ValueError(f"Muon needs matrices or stacks of matrices, not a tensor of shape {tuple(parameter.shape)}")
    if splits and sum(splits) != parameter.size(-2):
        raise ValueError(f"splits {tuple(splits)} do not add up to the {parameter.size(-2)} rows of the parameter")
