"""What the scan tests share: random cases, a run with all gradients, and the recurrence from the paper alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma_kernels.scan.state import Mamba3State, Mimo
from tests.kernels.tolerance import assert_close


@dataclass(frozen=True)
class Shape:
    """Sizes of a case; the letters of the architecture."""

    B: int = 2
    T: int = 13
    H: int = 4
    P: int = 3
    N: int = 8
    R: int = 1
    S: int = 3
    G: int = 2
    y_norm: bool = False

    def __str__(self) -> str:
        norm = "-norm" if self.y_norm else ""
        return f"B{self.B}-T{self.T}-H{self.H}-P{self.P}-N{self.N}-R{self.R}-S{self.S}-G{self.G}{norm}"


@dataclass
class Case:
    """The inputs by name, the learned tensors as keywords, and a state to start from."""

    inputs: dict[str, Tensor]
    parameters: dict[str, Any]
    state: Mamba3State

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor that has a gradient."""
        leaves = dict(self.inputs)
        for name, value in self.parameters.items():
            if isinstance(value, Mimo):
                leaves |= {f"mimo.{f.name}": getattr(value, f.name) for f in fields(Mimo)}
            elif value is not None:
                leaves[name] = value
        return leaves

    def state_leaves(self) -> dict[str, Tensor]:
        """The differentiable parts of the state."""
        return {f"state.{name}": getattr(self.state, name) for name in ("state_BHPN", "key_BRHN", "x_BHP")}

    def slice(self, *index: Any) -> list[Tensor]:
        """The inputs, indexed."""
        return [t[index] for t in self.inputs.values()]


def make_case(shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, states: int | None = None) -> Case:
    """Random values around a trained layer's: dt about 0.1, decays from gentle to hard, phases of many turns."""
    g = torch.Generator().manual_seed(seed)
    s = shape

    def normal(*size: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return (torch.randn(*size, generator=g, dtype=torch.float64) * scale + shift).to(dtype)

    inputs = {
        "x_BTHP": normal(s.B, s.T, s.H, s.P),
        "z_BTHP": normal(s.B, s.T, s.H, s.P),
        "in_BTRGN": normal(s.B, s.T, s.R, s.G, s.N),
        "out_BTRGN": normal(s.B, s.T, s.R, s.G, s.N),
        "dd_dt_BTH": normal(s.B, s.T, s.H),
        "dd_a_BTH": normal(s.B, s.T, s.H, scale=2.0),
        "trap_BTH": normal(s.B, s.T, s.H),
        "angle_BTS": normal(s.B, s.T, s.S, scale=2.0),
    }
    vector = {"scale": 0.3, "shift": 1.0}
    parameters = {
        "dt_bias_H": normal(s.H, shift=-1.0),
        "in_norm_N": normal(s.N, **vector),
        "out_norm_N": normal(s.N, **vector),
        "in_bias_HRN": normal(s.H, s.R, s.N, **vector),
        "out_bias_HRN": normal(s.H, s.R, s.N, **vector),
        "skip_H": normal(s.H),
        "mimo": Mimo(*(normal(s.H, s.R, s.P) for _ in range(3))) if s.R > 1 else None,
        "y_norm_HP": normal(s.H, s.P, **vector) if s.y_norm else None,
    }
    rows = s.B if states is None else states
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    state = Mamba3State(
        torch.randint(-(2**31), 2**31, (rows, s.H, s.S), generator=g).to(torch.int32),
        normal(rows, s.H, s.P, s.N).to(kept),
        normal(rows, s.R, s.H, s.N).to(kept),
        normal(rows, s.H, s.P).to(kept),
    )
    return Case(inputs, parameters, state)


def make_layer_case(shape: Shape, seed: int = 0) -> Case:
    """fp32 values like a layer's at the start of training: dt log-uniform in [0.001, 0.1], matrix biases near 1."""
    case = make_case(shape, torch.float32, seed)
    g = torch.Generator().manual_seed(seed + 1)
    dt = torch.exp(torch.rand(shape.H, generator=g) * math.log(100) + math.log(1e-3))
    case.parameters["dt_bias_H"] = dt + torch.log(-torch.expm1(-dt))
    for name in ("in_bias_HRN", "out_bias_HRN"):
        case.parameters[name] = 1 + 0.1 * torch.randn(shape.H, shape.R, shape.N, generator=g)
    return case


def run(scan: Callable[..., Any], case: Case, *, with_state: bool = False, **options: Any) -> dict[str, Tensor]:
    """y, the final state and every gradient of a random projection of both, by name."""
    leaves = case.leaves() | (case.state_leaves() if with_state else {})
    for leaf in leaves.values():
        leaf.requires_grad_()
    initial = case.state if with_state else None
    y, final = scan(**case.inputs, **case.parameters, initial_state=initial, return_final_state=True, **options)
    outputs = {"y": y, "final.state": final.state_BHPN, "final.key": final.key_BRHN, "final.x": final.x_BHP}
    g = torch.Generator().manual_seed(99)
    above = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t) for t in outputs.values()]
    # S = 0 leaves the angle unused: its gradient is as empty as itself.
    grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), above, materialize_grads=True)
    results = {name: t.detach() for name, t in outputs.items()} | {"final.phase": final.phase_BHS}
    return results | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Phases bit for bit, the rest within the table of tolerances (1e-10 in float64)."""
    assert got.keys() == want.keys()
    for name, value in got.items():
        if value.dtype == torch.int32:
            assert torch.equal(value, want[name]), name
        else:
            assert_close(name, value, want[name])


def paper_scan(case: Case, increments: Callable[[Tensor], Tensor]) -> Tensor:
    """The true rotating state of the paper in float64: h turns at every step, no running phase, no shared code.

    `increments` maps the exact increment of the phase in radians to the one that is used.
    """
    x, z, in_, out, dd_dt, dd_a, trap, angle = case.inputs.values()
    p = case.parameters
    dt = torch.log1p(torch.exp(dd_dt + p["dt_bias_H"]))
    decay = torch.exp(-dt * torch.maximum(torch.where(dd_a >= 0, 1 + dd_a, 1 / (1 + dd_a.abs())), torch.tensor(1e-4)))
    right = 1 / (1 + torch.exp(-trap))
    turn = increments(dt[..., None] * math.pi * torch.tanh(angle)[:, :, None])
    heads, rank, size = p["in_bias_HRN"].shape
    repeat = heads // in_.shape[3]

    def matrix(m: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed = m / torch.sqrt(m.pow(2).mean(-1, keepdim=True) + 1e-5) * weight
        return torch.stack([normed[:, :, :, h // repeat] + bias[h] for h in range(heads)], 2)  # [B, T, H, R, N]

    def rotation(radians: Tensor) -> Tensor:  # [B, H, S] -> [B, H, N, N], pairs (i, i + N/2)
        r = torch.eye(size, dtype=x.dtype).expand(*radians.shape[:2], size, size).clone()
        for i in range(radians.shape[-1]):
            j, c, s = i + size // 2, torch.cos(radians[..., i]), torch.sin(radians[..., i])
            r[..., i, i], r[..., j, j], r[..., i, j], r[..., j, i] = c, c, -s, s
        return r

    b, c = matrix(in_, p["in_norm_N"], p["in_bias_HRN"]), matrix(out, p["out_norm_N"], p["out_bias_HRN"])
    one = torch.ones(heads, rank, x.shape[-1], dtype=x.dtype)
    mimo = p["mimo"] or Mimo(one, one, one)
    big_x = x[:, :, :, None] * mimo.x_HRP
    h, previous, ys = torch.zeros(x.shape[0], heads, x.shape[-1], size, dtype=x.dtype), 0.0, []
    for t in range(x.shape[1]):
        a, d, w = (v[:, t, :, None, None] for v in (decay, dt, right))
        write = big_x[:, t].mT @ b[:, t]
        # The rotation acts on the state's channels from the inverse side: y reads R(-turn) h with unrotated matrices.
        h = (a * h + (1 - w) * d * a * previous) @ rotation(-turn[:, t]).mT + w * d * write
        previous = write
        ys.append(c[:, t] @ h.mT + p["skip_H"][:, None, None] * big_x[:, t])
    y = torch.stack(ys, 1)
    if p["y_norm_HP"] is not None:
        y = y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5) * p["y_norm_HP"][:, None]
    return (y * F.silu(z[:, :, :, None] * mimo.z_HRP) * mimo.out_HRP).sum(3)
