"""Linear layers with ternary (b1.58) or plain weights, and the step-scoped cache of the quantised weights.

A weight is quantised once per *weight epoch*, not once per forward: the first forward of an epoch refreshes the cache,
all micro-batches, recomputations and decode steps after it read it. An epoch begins with `new_weight_epoch()`, which
the trainer calls after each optimizer step; loading a state dict, moving or converting the module begin one too. As a
second line, a weight whose version counter moved is quantised again; writes through `.data` or a raw pointer do not
move it, so they need the explicit epoch. Counters: `bitlinear.refresh` + `bitlinear.cache_hit` = ternary forwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from sigma.core.errors import SigmaError
from sigma.memory.instant import consuming
from sigma_kernels import counters
from sigma_kernels.bitlinear.op import bit_linear, linear, quantize_activation, quantize_weight
from sigma_kernels.bitlinear.reference import quantize_weight_reference

QuantMode = Literal["bitnet_1_58", "none"]


_drawn_later: ContextVar[bool] = ContextVar("drawn_later", default=False)


class StaleWeightError(SigmaError, RuntimeError):
    """The cache of a quantised weight does not belong to the weight."""


def ternary_power() -> float:
    """E[(scale * code)^2] of a weight from N(0, 1), which is 0.4393.

    scale = E|w| = sqrt(2 / pi); a code is 0 where |w| < scale / 2, which has the probability erf(scale / sqrt(8)).
    """
    scale = math.sqrt(2 / math.pi)
    return scale**2 * (1 - math.erf(scale / math.sqrt(8)))


def initial_std(fan_in: int, quant_mode: QuantMode) -> float:
    """Standard deviation of a weight for which an input of variance 1 gives an output of variance 1.

    Plain: 1 / sqrt(K). Ternary: 1 / sqrt(0.4393 K) = 1.509 / sqrt(K), because rounding to three values loses 56 % of
    the power of a Gaussian weight.
    """
    return 1 / math.sqrt(fan_in * (ternary_power() if quant_mode == "bitnet_1_58" else 1))


@contextmanager
def drawn_later() -> Iterator[None]:
    """Inside, a quantised weight is made without values: a model draws each of its own from a stream of its own."""
    token = _drawn_later.set(True)
    try:
        yield
    finally:
        _drawn_later.reset(token)


class QuantizedWeight(nn.Module):
    """A weight `[N, K]` or a stack `[E, N, K]` with its cached ternary codes (int8) and scale (fp32)."""

    codes: Tensor | None
    scale: Tensor | None

    def __init__(self, *shape: int, quant_mode: QuantMode, init_scale: float = 1.0) -> None:
        super().__init__()
        self.quant_mode: QuantMode = quant_mode
        self.init_scale = init_scale
        self.weight = nn.Parameter(torch.empty(*shape))
        self.register_buffer("codes", None, persistent=False)
        self.register_buffer("scale", None, persistent=False)
        self._fresh: tuple[int, int] | None = None
        if not _drawn_later.get():
            self.reset_parameters()

    @property
    def ternary(self) -> bool:
        """Whether the forward pass uses the ternary codes."""
        return self.quant_mode == "bitnet_1_58"

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weight from N(0, (init_scale * initial_std)^2), from `generator` or else the global one."""
        std = self.init_scale * initial_std(self.weight.shape[-1], self.quant_mode)
        init.normal_(self.weight, std=std, generator=generator)
        self.new_weight_epoch()

    def new_weight_epoch(self) -> None:
        """The weight has changed: the next forward quantises it again."""
        self._fresh = None

    def quantized_weight(self) -> tuple[Tensor, Tensor]:
        """Codes and scale of this epoch, from the cache or made now. Only for ternary weights."""
        if self._fresh == self._version() and self.codes is not None and self.scale is not None:
            counters.add("bitlinear.cache_hit")
            return self.codes, self.scale
        # new tensors, not a write into the old ones: a graph that still needs the old codes keeps them
        self.codes, self.scale = quantize_weight(self.weight.detach())
        self._fresh = self._version()
        counters.add("bitlinear.refresh")
        return self.codes, self.scale

    def weight_values(self) -> Tensor:
        """The matrix that the forward pass multiplies with, without gradient: scale * codes, or the weight."""
        if not self.ternary:
            return self.weight.detach()
        codes, scale = self.quantized_weight()
        return codes * scale[..., None, None]

    def verify_cache(self) -> None:
        """Quantise again and compare with what the next forward would use. Waits for the device.

        Raises StaleWeightError when they differ: the weight was written without a new epoch.
        """
        if not self.ternary or self._fresh != self._version() or self.codes is None or self.scale is None:
            return
        codes, scale = quantize_weight_reference(self.weight.detach())
        if not (torch.equal(codes, self.codes) and torch.equal(scale, self.scale)):
            raise StaleWeightError(
                "the cached codes of a ternary weight are not those of the weight: it was changed without"
                " new_weight_epoch(); call it (or model.after_update()) after every write to the weights"
            )

    def _version(self) -> tuple[int, int]:
        return id(self.weight), self.weight._version

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.new_weight_epoch()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.new_weight_epoch()
        self.codes = self.scale = None
        return super()._apply(fn, recurse)


class BitLinear(QuantizedWeight):
    """y = x W^T without bias: ternary weight and int8 activations (b1.58), or plain with `quant_mode` "none".

    `splits` are the output widths of a fused projection's parts, for the optimizer; they share one scale. `init_scale`
    multiplies the initial weight (below 1 for projections that write into the residual stream).
    Training and evaluation compute the same bits.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        quant_mode: QuantMode,
        splits: tuple[int, ...] = (),
        init_scale: float = 1.0,
    ) -> None:
        if splits and sum(splits) != out_features:
            raise ValueError(f"splits {splits} add up to {sum(splits)}, not to out_features {out_features}")
        super().__init__(out_features, in_features, quant_mode=quant_mode, init_scale=init_scale)
        self.in_features, self.out_features, self.splits = in_features, out_features, splits

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`, in the autocast dtype or that of `x`."""
        with consuming(x):
            if not self.ternary:
                return linear(x, self.weight)
            return bit_linear(x, self.weight, *self.quantized_weight())

    def quantized_input(self, x: Tensor) -> Tensor:
        """The values that the product sees in place of `x`, without gradient; quantising them again changes nothing."""
        if not self.ternary:
            return x.detach()
        codes, scale = quantize_activation(x.detach())
        return (codes * scale[..., None]).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, quant_mode={self.quant_mode}"


def new_weight_epoch(model: nn.Module) -> None:
    """Begin a new epoch for every quantised weight of `model`."""
    for module in model.modules():
        if isinstance(module, QuantizedWeight):
            module.new_weight_epoch()


def verify_weight_cache(model: nn.Module) -> int:
    """`verify_cache` for every quantised weight of `model`; returns how many there are."""
    weights = [module for module in model.modules() if isinstance(module, QuantizedWeight) and module.ternary]
    for module in weights:
        module.verify_cache()
    return len(weights)
