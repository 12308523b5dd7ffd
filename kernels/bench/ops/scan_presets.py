"""What one Mamba-3 layer costs by its sizes, forward and backward of 32k tokens: the presets' sizes follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from floors import ScanShape
from registry import Case, benchmark
from scan_group import scan_groups
from scan_inputs import ScanInputs
from scan_providers import Bound, Provider, sigma
from torch import Tensor

from sigma_kernels.scan.op import mamba3_scan

WIDTHS, EXPANSIONS, STATES, RANKS = (768, 2048), (1, 2), (64, 128), (1, 2, 4)
HEAD_SIZE = 64
CONTROLS = 4  # the last inputs of the scan come from the second projection


def layer(width: int) -> Provider:
    """The scan between a layer's projections, which are plain bf16 products here; gradients of the weights too."""

    def provider(i: ScanInputs) -> Bound:
        dy_BTHP, generator = i.dy_BTHP, torch.Generator(i.dy_BTHP.device).manual_seed(1)

        def normal(*size: int, scale: float = 1.0) -> Tensor:
            made = torch.randn(*size, generator=generator, device=dy_BTHP.device) * scale
            return made.to(dy_BTHP.dtype).requires_grad_()

        shapes = [t.shape[2:] for t in i.inputs.values()]
        sizes, inner = [shape.numel() for shape in shapes], dy_BTHP[0, 0].numel()
        u_BTD, out_DF = normal(*dy_BTHP.shape[:2], width), normal(width, inner, scale=inner**-0.5)
        in_FD = normal(sum(sizes[:-CONTROLS]), width, scale=width**-0.5)
        control_FD = normal(sum(sizes[-CONTROLS:]), width, scale=width**-0.5)

        def forward() -> Tensor:
            parts = F.linear(u_BTD, in_FD).split(sizes[:-CONTROLS], -1)
            parts += F.linear(u_BTD, control_FD).split(sizes[-CONTROLS:], -1)
            views = [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]
            y_BTHP = mamba3_scan(*views, **i.parameters)
            assert isinstance(y_BTHP, Tensor)
            return F.linear(y_BTHP.flatten(2), out_DF)

        learned = [leaf for name, leaf in i.leaves().items() if name not in i.inputs]
        return Bound(forward, [u_BTD, in_FD, control_FD, out_DF, *learned], dy=u_BTD.detach())

    return provider


@benchmark("scan_presets")
def cases() -> Iterator[list[Case]]:
    """H = expand * width / 64 tells expand: 12 and 24 heads are 1 and 2 at width 768, 32 and 64 at 2048."""
    for width in WIDTHS:
        shapes = [
            ScanShape(8, 4096, expand * width // HEAD_SIZE, HEAD_SIZE, state, rank)
            for expand, state, rank in product(EXPANSIONS, STATES, RANKS)
        ]
        providers = {"sigma": sigma, f"layer-d{width}": layer(width)}
        yield from scan_groups(shapes, providers, ["forward+backward"])
