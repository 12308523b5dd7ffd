"""Inputs of the scan as a layer makes them: strided views of two projections, and parameters near a trained layer's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from floors import ScanShape
from torch import Tensor

from sigma_kernels.scan.chunked import mamba3_scan_chunked
from sigma_kernels.scan.state import Mimo

DT_MIN, DT_MAX = 1e-3, 1e-1


@dataclass
class ScanInputs:
    """The arguments of `mamba3_scan` by name, all requiring gradients, and the gradient of its output."""

    shape: ScanShape
    inputs: dict[str, Tensor]
    parameters: dict[str, Any]
    dy_BTHP: Tensor

    def leaves(self) -> dict[str, Tensor]:
        """Everything that gets a gradient."""
        leaves = dict(self.inputs)
        for name, value in self.parameters.items():
            if isinstance(value, Mimo):
                leaves |= {f"mimo.{f.name}": getattr(value, f.name) for f in fields(Mimo)}
            else:
                leaves[name] = value
        return leaves

    def map(self, change: Callable[[str, Tensor], Tensor]) -> ScanInputs:
        """The same inputs with every leaf replaced by a detached `change(name, leaf)`."""

        def changed(name: str, tensor: Tensor) -> Tensor:
            return change(name, tensor.detach()).requires_grad_()

        parameters: dict[str, Any] = {}
        for name, value in self.parameters.items():
            if isinstance(value, Mimo):
                parts = {f.name: changed(f"mimo.{f.name}", getattr(value, f.name)) for f in fields(Mimo)}
                parameters[name] = Mimo(**parts)
            else:
                parameters[name] = changed(name, value)
        inputs = {name: changed(name, tensor) for name, tensor in self.inputs.items()}
        return ScanInputs(self.shape, inputs, parameters, self.dy_BTHP)


def make_inputs(
    shape: ScanShape, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> ScanInputs:
    """Projections in `dtype`, parameters in fp32; the eight inputs are views into the projections' rows."""
    generator = torch.Generator(device).manual_seed(seed)
    s = shape

    def normal(*size: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).mul_(scale).add_(shift)

    inner, matrix = s.heads * s.head_size, s.rank * s.groups * s.state
    z, x, in_, out = normal(s.batch, s.steps, 2 * (inner + matrix)).to(dtype).split([inner, inner, matrix, matrix], -1)
    control = normal(s.batch, s.steps, 3 * s.heads + s.pairs)
    control[..., s.heads : 2 * s.heads] *= 2  # decays from gentle to hard
    dd_dt, dd_a, trap, angle = control.to(dtype).split([s.heads, s.heads, s.heads, s.pairs], -1)
    inputs = {
        "x_BTHP": x.unflatten(-1, (s.heads, s.head_size)),
        "z_BTHP": z.unflatten(-1, (s.heads, s.head_size)),
        "in_BTRGN": in_.unflatten(-1, (s.rank, s.groups, s.state)),
        "out_BTRGN": out.unflatten(-1, (s.rank, s.groups, s.state)),
        "dd_dt_BTH": dd_dt,
        "dd_a_BTH": dd_a,
        "trap_BTH": trap,
        "angle_BTS": angle,
    }
    dy_BTHP = normal(s.batch, s.steps, s.heads, s.head_size).to(dtype)
    made = ScanInputs(shape, inputs, _parameters(shape, normal, generator, device), dy_BTHP)
    return made.map(lambda name, tensor: tensor)


def _parameters(s: ScanShape, normal: Callable[..., Tensor], generator: torch.Generator, device: str) -> dict[str, Any]:
    near_one = {"scale": 0.3, "shift": 1.0}
    spread = torch.rand(s.heads, generator=generator, device=device)
    dt_H = torch.exp(math.log(DT_MIN) + spread * math.log(DT_MAX / DT_MIN))
    parameters: dict[str, Any] = {
        "dt_bias_H": dt_H + torch.log(-torch.expm1(-dt_H)),  # the inverse of softplus
        "in_norm_N": normal(s.state, **near_one),
        "out_norm_N": normal(s.state, **near_one),
        "in_bias_HRN": normal(s.heads, s.rank, s.state, **near_one),
        "out_bias_HRN": normal(s.heads, s.rank, s.state, **near_one),
        "skip_H": normal(s.heads, **near_one),
    }
    if s.rank > 1:
        parameters["mimo"] = Mimo(*(normal(s.heads, s.rank, s.head_size, scale=s.rank**-0.5) for _ in range(3)))
    return parameters


def results(forward: Callable[[], Tensor], leaves: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    """The output and every gradient, by name."""
    y = forward()
    grads = torch.autograd.grad(y, list(leaves.values()), dy.to(y.dtype))
    return {"y": y.detach()} | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def exact(inputs: ScanInputs) -> dict[str, Tensor]:
    """The output and every gradient in fp64, of the same (rounded) inputs."""
    wide = inputs.map(lambda name, tensor: tensor.double())
    return results(lambda: _chunked(wide), wide.leaves(), wide.dy_BTHP)


def _chunked(inputs: ScanInputs) -> Tensor:
    y = mamba3_scan_chunked(**inputs.inputs, **inputs.parameters)
    assert isinstance(y, Tensor)
    return y
