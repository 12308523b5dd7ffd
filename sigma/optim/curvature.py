"""Gauss-Newton curvature of matrices from one backward pass with labels drawn from the model.

The labels of the text would give the empirical Fisher matrix, which is what SOAP sees. Labels drawn from the model's
own prediction give an unbiased Gauss-Newton matrix of the cross-entropy (Gauss-Newton-Bartlett, arXiv:2305.14342, 2.3):
with g the gradient of a mean over N such labels, N E[g g^T] is that matrix. For g = sum_t d_t x_t^T its Kronecker form
keeps the products of each position with itself (arXiv:1503.05671): A = mean_t x_t x_t^T, B = N sum_t d_t d_t^T.
T positions, N inputs and M outputs of a matrix, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.cross_entropy.reference import IGNORED_LABEL

Sink = Callable[[nn.Parameter, Tensor, Tensor], None]


def draw_labels(logits_TV: Tensor, labels_T: Tensor, generator: torch.Generator) -> Tensor:
    """A label from softmax(logits) for every position that has one; -100 stays.

    The largest of logits with Gumbel noise, which also takes logits that are not finite (multinomial raises then).
    """
    logits_TV = logits_TV.detach().float()
    noise_TV = torch.empty_like(logits_TV).exponential_(generator=generator)
    drawn_T = (logits_TV - noise_TV.log()).argmax(-1)
    return torch.where(labels_T == IGNORED_LABEL, labels_T, drawn_T)


def backward_with_drawn_labels(logits_BTV: Tensor, labels_BT: Tensor, generator: torch.Generator | None) -> Tensor:
    """Backward of the mean cross-entropy with drawn labels; returns how many labels that is (a device scalar).

    Without a generator the labels are those given: the empirical Fisher matrix, for comparison.
    """
    logits_TV, labels_T = logits_BTV.flatten(0, 1), labels_BT.flatten()
    used_T = labels_T if generator is None else draw_labels(logits_TV, labels_T, generator)
    count = (used_T != IGNORED_LABEL).sum()
    (cross_entropy(logits_TV, used_T).sum() / count).backward()
    return count


@contextmanager
def watch_products(model: nn.Module, parameters: Iterable[nn.Parameter], sink: Sink) -> Iterator[None]:
    """While it is open, `sink(weight, x_TN, d_TM)` gets input and output gradient of every product with a weight.

    Called in the backward pass, in fp32, for modules whose `weight` is one of `parameters`. Rows of a stack of experts
    come in the order of the module, weighted with their gate.
    """
    wanted = {id(p) for p in parameters}
    modules = [m for m in model.modules() if id(getattr(m, "weight", None)) in wanted]
    hooks = [m.register_forward_hook(_Watch(sink), with_kwargs=True) for m in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class _Watch:
    sink: Sink

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if not output.requires_grad:
            return
        x, gate_M = args[0].detach(), kwargs.get("gate_M")
        gate_M = None if gate_M is None else gate_M.detach()

        def deliver(grad: Tensor) -> None:
            d_TM = grad.detach().flatten(0, -2).float()
            d_TM = d_TM if gate_M is None else d_TM * gate_M[:, None]
            self.sink(module.weight, x.flatten(0, -2).float(), d_TM)

        output.register_hook(deliver)


def input_covariance(x_TN: Tensor) -> Tensor:
    """A `[N, N]`: mean over the positions of x x^T."""
    return x_TN.mT @ x_TN / x_TN.size(0)


def output_covariance(d_TM: Tensor, labels: Tensor) -> Tensor:
    """B `[M, M]`: `labels` times the sum over the positions of d d^T, with d the gradient of the mean loss."""
    return labels * (d_TM.mT @ d_TM)


def diagonal_curvature(x_TN: Tensor, d_TM: Tensor, right_NN: Tensor, left_MM: Tensor, labels: Tensor) -> Tensor:
    """H `[M, N]`: the diagonal of the Gauss-Newton matrix in the axes `left` and `right`, measured (EKFAC)."""
    return labels * ((d_TM @ left_MM).square().mT @ (x_TN @ right_NN).square())
