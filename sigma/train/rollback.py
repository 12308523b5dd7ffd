"""What a failed attempt at a step must not leave behind: router buffers, generators, execution counters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sigma_kernels import counters


class Rollback:
    """A copy, taken before the step, of everything that a forward pass changes besides gradients.

    `buffers` are the persistent ones (a few numbers per router); caches that a forward rebuilds need no copy.
    """

    def __init__(self, buffers: Iterable[Tensor], device: torch.device) -> None:
        self._device = device
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]
        self._cpu_rng = torch.get_rng_state()
        self._cuda_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._counters = counters.snapshot()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, for another attempt at the same batch."""
        for buffer, saved in self._buffers:
            buffer.copy_(saved)
        torch.set_rng_state(self._cpu_rng)
        if self._cuda_rng is not None:
            torch.cuda.set_rng_state(self._cuda_rng, self._device)
        counters.load(self._counters)

    @torch.no_grad()
    def restore_buffers(self, found_inf: Tensor) -> None:
        """Put the buffers back where the device scalar `found_inf` is 1, without waiting for the device."""
        bad = found_inf.bool()
        for buffer, saved in self._buffers:
            buffer.copy_(torch.where(bad, saved, buffer))


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of `model` that its state dict holds."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}
