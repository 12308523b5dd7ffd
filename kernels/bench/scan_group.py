"""Cases of the scan: one group for each shape and direction, its providers timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import scan_accuracy
import torch
import torch._functorch.config
from floors import ScanShape, scan_work
from registry import Case
from scan_inputs import make_inputs
from scan_providers import Bound, Provider

DIRECTIONS = ("forward", "forward+backward", "inference")
COMPILE_LIMIT_S = 240.0  # torch.compile of the reference does not end at large shapes


@dataclass
class Turn:
    """What a case runs; its tensors exist from `setup` on, and as long as the case."""

    provider: Provider
    shape: ScanShape
    direction: str
    _made: list[tuple[Bound, torch.Tensor]] = field(default_factory=list)

    def setup(self) -> None:
        """Make the inputs; raises Skip when the provider is missing."""
        # a compiled backward that is timed many times must not reuse the memory of what it saved
        torch._functorch.config.donated_buffer = False
        inputs = make_inputs(self.shape)
        bound = self.provider(inputs)
        self._made = [(bound, inputs.dy_BTHP if bound.dy is None else bound.dy)]

    def __call__(self) -> object:
        bound, dy = self._made[0]
        if self.direction == "inference":
            with torch.no_grad():
                return bound.forward()
        y = bound.forward()
        return y if self.direction == "forward" else torch.autograd.grad(y, bound.leaves, dy)


def scan_groups(
    shapes: Sequence[ScanShape],
    providers: Mapping[str, Provider],
    directions: Sequence[str] = DIRECTIONS,
    error: Callable[[str, ScanShape, str], float] = scan_accuracy.error_of,
) -> Iterator[list[Case]]:
    """One list of cases for each shape and direction."""
    for shape in shapes:
        for direction in directions:
            group = []
            for name, provider in providers.items():
                turn, work = Turn(provider, shape, direction), scan_work(shape, direction)
                group.append(
                    Case(
                        shape=str(shape),
                        dtype="bfloat16",
                        provider=name,
                        direction=direction,
                        bytes=sum(phase.bytes for phase in work),
                        run=turn,
                        work=work,
                        setup=turn.setup,
                        error=lambda name=name, shape=shape, direction=direction: error(name, shape, direction),
                        limit_s=COMPILE_LIMIT_S if name.endswith("-compiled") else None,
                    )
                )
            yield group
