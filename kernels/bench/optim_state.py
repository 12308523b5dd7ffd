"""Bytes that optimizers keep, at 108 M and 1.46 G parameters: `python kernels/bench/optim_state.py`.

Counted on what the optimizers themselves make on torch's meta device, whose tensors have no memory: no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from ops.optim_step import PROVIDERS
from optim_shapes import SHAPES, named_shapes, parameters_of
from torch import Tensor
from torch.nn import Parameter

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.optim.build import build_optimizers

SHOWN = ("normuon", "normuon-lean-graph", "muon-graph", "adamuon-graph", "normuon-blocks-graph", "adamw-graph")


def kept(
    parameters: Mapping[str, Parameter], roles: Mapping[str, Any], optimizer: str, optim: OptimSection
) -> tuple[int, int]:
    """(bytes of the weights, which may become bf16; bytes of the state) from the first step on."""
    train = TrainSection(lr=1e-3, adam_lr=1e-3, optimizer=optimizer)  # pyright: ignore[reportArgumentType]
    optim = replace(optim, optim_graph=False)
    optimizers = build_optimizers(dict(parameters), dict(roles), train, optim, CurvatureSection(), C3OSection())
    if optimizers.matrix is not None:
        optimizers.matrix.prepare()
    if optimizers.adamw is not None:
        for group in optimizers.adamw.param_groups:
            group |= {"fused": False, "foreach": False}  # which know nothing of the meta device
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizers.adamw.step()
    return bytes_of(parameters.values()), bytes_of(optimizers.tensors().values())


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of all of them together."""
    return sum(t.nbytes for t in tensors)


def main() -> None:
    """Print a line for each preset and optimizer."""
    for preset in SHAPES:
        for name in SHOWN:
            provider = PROVIDERS[name]
            listed = list(named_shapes(preset))
            parameters = {key: Parameter(torch.empty(shape, device="meta")) for key, _, shape in listed}
            roles = {key: role for key, role, _ in listed}
            weights, state = kept(parameters, roles, provider.optimizer, provider.optim)
            sizes = f"weights {weights / 1e6:5.0f} MB  state {state / 1e6:6.0f} MB  {state / parameters_of(preset):.2f}"
            print(f"{preset}  {name.removesuffix('-graph'):14s} {sizes} bytes a parameter")


if __name__ == "__main__":
    main()
