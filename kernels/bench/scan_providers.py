"""Everybody's scan as a pair of a forward and its leaves: op-only with native inputs, or from a layer's projections.

Op-only, each library gets what its function takes, made beforehand. Layer-equivalent, all start from the views of the
in-projection and end with the gated output, so that what a library leaves to its caller is timed as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peers
import torch
import torch.nn.functional as F
from registry import Skip
from scan_inputs import ScanInputs
from torch import Tensor

from sigma_kernels.scan.chunked import mamba3_scan_chunked
from sigma_kernels.scan.op import mamba3_scan
from sigma_kernels.scan.phase import rotate
from sigma_kernels.scan.prepare import DECAY_FLOOR, NORM_EPS, Prepared, heavy_tail, prepare

Activation = Callable[[Tensor], Tensor]


@dataclass
class Bound:
    """A provider with its inputs."""

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    dy: Tensor | None = None  # where the output is not the scan's


Provider = Callable[[ScanInputs], Bound]


def _bind(scan: Callable[..., Any], i: ScanInputs) -> Bound:
    return Bound(lambda: scan(**i.inputs, **i.parameters), list(i.leaves().values()))


def sigma(i: ScanInputs) -> Bound:
    """Ours; the op takes a layer's projections as they are."""
    return _bind(mamba3_scan, i)


def reference(i: ScanInputs) -> Bound:
    """The chunked PyTorch reference, eager."""
    return _bind(mamba3_scan_chunked, i)


def reference_compiled(i: ScanInputs) -> Bound:
    """The chunked PyTorch reference under torch.compile."""
    return _bind(torch.compile(mamba3_scan_chunked, dynamic=False), i)


def _rank_one(i: ScanInputs, name: str) -> None:
    if i.shape.rank > 1:
        raise Skip(f"{name} has no rank above 1 in Triton")


def _leaf(t: Tensor) -> Tensor:
    return t.detach().contiguous().requires_grad_()


def _prepared(i: ScanInputs) -> Prepared:
    with torch.no_grad():
        return prepare(*i.inputs.values(), valid_BT=None, **i.parameters)


def official(i: ScanInputs) -> Bound:
    """Official Mamba-3 op: normalised B and C, fp32 step sizes and decays, angles repeated for every head."""
    scan = peers.mamba3_siso()
    _rank_one(i, "the official kernel")
    p, dtype = _prepared(i), i.dy_BTHP.dtype
    angle_BTHS = i.inputs["angle_BTS"][:, :, None].expand(-1, -1, i.shape.heads, -1)
    tensors = {
        "Q": p.out_BTRGN[:, :, 0].to(dtype),
        "K": p.in_BTRGN[:, :, 0].to(dtype),
        "V": i.inputs["x_BTHP"],
        "ADT": p.log_decay_BTH.mT,
        "DT": (p.gamma_BTH + p.left_BTH).mT,
        "Trap": i.inputs["trap_BTH"].mT,
        "Q_bias": p.out_bias_HRN[:, 0],
        "K_bias": p.in_bias_HRN[:, 0],
        "Angles": angle_BTHS,
        "D": p.skip_H,
        "Z": i.inputs["z_BTHP"],
    }
    leaves = {name: _leaf(t) for name, t in tensors.items()}
    return Bound(lambda: scan(**leaves, chunk_size=64), list(leaves.values()))


def official_layer(i: ScanInputs, decay: Activation = F.softplus) -> Bound:
    """Official `Mamba3.forward` without its two projections; `decay` maps dd_a to -A (softplus in release 2.3.2)."""
    scan, norm = peers.mamba3_siso(), peers.mamba_rms_norm()
    _rank_one(i, "the official kernel")
    p = i.parameters

    def forward() -> Tensor:
        x, z, in_, out, dd_dt, dd_a, trap, angle = i.inputs.values()
        a_BTH = (-decay(dd_a.float())).clamp(max=-DECAY_FLOOR)
        dt_BTH = F.softplus(dd_dt + p["dt_bias_H"])
        return scan(
            Q=norm(out, p["out_norm_N"], None, eps=NORM_EPS).squeeze(2),
            K=norm(in_, p["in_norm_N"], None, eps=NORM_EPS).squeeze(2),
            V=x,
            ADT=(a_BTH * dt_BTH).mT,
            DT=dt_BTH.mT,
            Trap=trap.mT,
            Q_bias=p["out_bias_HRN"].squeeze(1),
            K_bias=p["in_bias_HRN"].squeeze(1),
            Angles=angle.unsqueeze(-2).expand(-1, -1, i.shape.heads, -1).to(torch.float32),
            D=p["skip_H"],
            Z=z,
            chunk_size=64,
        )

    return Bound(forward, list(i.leaves().values()))


def mamba2(i: ScanInputs) -> Bound:
    """Official Mamba-2: no rotation, no trapezoid, one constant A per head; takes a layer's projections as they are."""
    scan = peers.mamba2_chunk_scan()
    _rank_one(i, "Mamba-2")
    x, z, in_, out, dd_dt = list(i.inputs.values())[:5]
    p = i.parameters
    a_H = _leaf(-torch.linspace(1, 16, i.shape.heads, device=x.device))

    def forward() -> Tensor:
        return scan(
            x, dd_dt, a_H, in_.squeeze(2), out.squeeze(2), 256,
            D=p["skip_H"], z=z, dt_bias=p["dt_bias_H"], dt_softplus=True,
        )  # fmt: skip

    return Bound(forward, [x, dd_dt, a_H, in_, out, p["skip_H"], z, p["dt_bias_H"]])


def simple_gla(i: ScanInputs) -> Bound:
    """fla's scan: queries and keys of every head, a log decay; no rotation, skip or gate."""
    scan = peers.simple_gla()
    _rank_one(i, "simple_gla")
    p, dtype = _prepared(i), i.dy_BTHP.dtype
    q, k = (
        (m_BTRGN[:, :, 0].repeat_interleave(i.shape.heads // i.shape.groups, 2) + bias[:, 0])
        for m_BTRGN, bias in ((p.out_BTRGN, p.out_bias_HRN), (p.in_BTRGN, p.in_bias_HRN))
    )
    k = k * (p.gamma_BTH + p.left_BTH)[..., None]
    leaves = [_leaf(t) for t in (q.to(dtype), k.to(dtype), i.inputs["x_BTHP"], p.log_decay_BTH)]
    return Bound(lambda: scan(*leaves, scale=1.0)[0], leaves)


def fla_composed(i: ScanInputs) -> Bound:
    """Mamba-3 put together from fla's scan and PyTorch: its diagonal is corrected to the trapezoid's right end."""
    scan = peers.simple_gla()
    _rank_one(i, "simple_gla")

    def forward() -> Tensor:
        p = prepare(*i.inputs.values(), valid_BT=None, **i.parameters)
        angle_BTHS = 2 * math.pi * p.turns_BTHS.cumsum(1)
        repeat = i.shape.heads // i.shape.groups
        q, k = (
            rotate(m_BTRGN[:, :, 0].repeat_interleave(repeat, 2) + bias[:, 0], angle_BTHS)
            for m_BTRGN, bias in ((p.out_BTRGN, p.out_bias_HRN), (p.in_BTRGN, p.in_bias_HRN))
        )
        left_BTH = F.pad(p.left_BTH[:, 1:], (0, 0, 0, 1))
        dtype = i.dy_BTHP.dtype
        scaled = (k * (p.gamma_BTH + left_BTH)[..., None]).to(dtype)
        o_BTHP = scan(q.to(dtype), scaled, i.inputs["x_BTHP"], p.log_decay_BTH, scale=1.0)[0]
        diagonal_BTH = p.skip_H - left_BTH * (q * k).sum(-1)
        y_BTHP = (o_BTHP + diagonal_BTH[..., None] * p.x_BTHP) * F.silu(p.z_BTHP)
        return y_BTHP.to(dtype)

    return Bound(forward, list(i.leaves().values()))


def official_heavy_tail(i: ScanInputs) -> Bound:
    """The official layer with our decay (as in its later versions), to compare results."""
    return official_layer(i, heavy_tail)


OP_ONLY: dict[str, Provider] = {
    "sigma": sigma,
    "mamba3-official": official,
    "mamba2": mamba2,
    "fla-simple-gla": simple_gla,
    "reference-eager": reference,
    "reference-compiled": reference_compiled,
}
LAYER: dict[str, Provider] = {
    "sigma": sigma,
    "mamba3-official": official_layer,
    "mamba2": mamba2,
    "fla-composed": fla_composed,
}
