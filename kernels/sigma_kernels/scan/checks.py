"""Shape checks of the scan's arguments: every message names the tensor, what it is and what it should be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sigma_kernels.scan.prepare import ScanParameters, compute_dtype
from sigma_kernels.scan.state import Mamba3State


@dataclass(frozen=True)
class Sizes:
    """H heads, P head size, R rank, G groups, N state, S rotating pairs."""

    heads: int
    head_size: int
    rank: int
    groups: int
    state: int
    pairs: int


def expect(name: str, tensor: Tensor, *shape: int) -> None:
    """Raise ValueError unless `tensor` has exactly `shape`."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def _expect_dim(name: str, tensor: Tensor, dim: int) -> None:
    if tensor.dim() != dim:
        raise ValueError(f"{name}: expected {dim} axes, got shape {tuple(tensor.shape)}")


def check_inputs(inputs: tuple[Tensor, ...], axes: str) -> Sizes:
    """Check the eight time-varying inputs; `axes` is their leading axes, "BT" for the scan and "B" for the step."""
    x, z, in_, out, dd_dt, dd_a, trap, angle = inputs
    lead = len(axes)
    for name, tensor, dim in ((f"x_{axes}HP", x, 2), (f"in_{axes}RGN", in_, 3), (f"angle_{axes}S", angle, 1)):
        _expect_dim(name, tensor, lead + dim)
    leading = tuple(x.shape[:lead])
    heads, head_size = x.shape[lead:]
    rank, groups, state = in_.shape[lead:]
    sizes = Sizes(heads, head_size, rank, groups, state, angle.shape[-1])
    if 0 in (*leading, sizes.heads, sizes.rank, sizes.groups):
        raise ValueError(f"x_{axes}HP, in_{axes}RGN: no axis may be empty, got {tuple(x.shape)} and {tuple(in_.shape)}")
    if sizes.heads % sizes.groups:
        raise ValueError(f"in_{axes}RGN: {sizes.groups} groups do not divide {sizes.heads} heads")
    expect(f"z_{axes}HP", z, *x.shape)
    expect(f"in_{axes}RGN", in_, *leading, sizes.rank, sizes.groups, sizes.state)
    expect(f"out_{axes}RGN", out, *in_.shape)
    for name, tensor in (("dd_dt", dd_dt), ("dd_a", dd_a), ("trap", trap)):
        expect(f"{name}_{axes}H", tensor, *leading, sizes.heads)
    expect(f"angle_{axes}S", angle, *leading, sizes.pairs)
    if sizes.pairs and (sizes.state % 2 or sizes.pairs > sizes.state // 2):
        raise ValueError(
            f"angle_{axes}S: {sizes.pairs} pairs need an even N of at least {2 * sizes.pairs}, got {sizes.state}"
        )
    return sizes


def check_parameters(parameters: ScanParameters, n: Sizes) -> None:
    """Check the learned tensors against the sizes of the inputs."""
    expect("dt_bias_H", parameters["dt_bias_H"], n.heads)
    expect("skip_H", parameters["skip_H"], n.heads)
    expect("in_norm_N", parameters["in_norm_N"], n.state)
    expect("out_norm_N", parameters["out_norm_N"], n.state)
    expect("in_bias_HRN", parameters["in_bias_HRN"], n.heads, n.rank, n.state)
    expect("out_bias_HRN", parameters["out_bias_HRN"], n.heads, n.rank, n.state)
    mimo, y_norm_HP = parameters.get("mimo"), parameters.get("y_norm_HP")
    if y_norm_HP is not None:
        expect("y_norm_HP", y_norm_HP, n.heads, n.head_size)
    if mimo is None:
        if n.rank != 1:
            raise ValueError(f"mimo: rank {n.rank} needs the expansions x_HRP, z_HRP and out_HRP; None is for rank 1")
        return
    for name in ("x_HRP", "z_HRP", "out_HRP"):
        expect(f"mimo.{name}", getattr(mimo, name), n.heads, n.rank, n.head_size)


def check_state(name: str, state: Mamba3State, batch: int, n: Sizes, x: Tensor) -> None:
    """Check a state against the sizes of the inputs: int32 phase, the rest in the compute dtype of `x`.

    The large one, `state_BHPN`, may also be bf16 where fp32 is computed.
    """
    expect(f"{name}.phase_BHS", state.phase_BHS, batch, n.heads, n.pairs)
    expect(f"{name}.state_BHPN", state.state_BHPN, batch, n.heads, n.head_size, n.state)
    expect(f"{name}.key_BRHN", state.key_BRHN, batch, n.rank, n.heads, n.state)
    expect(f"{name}.x_BHP", state.x_BHP, batch, n.heads, n.head_size)
    if state.phase_BHS.dtype != torch.int32:
        raise ValueError(f"{name}.phase_BHS: expected int32 turns, got {state.phase_BHS.dtype}")
    for part in ("state_BHPN", "key_BRHN", "x_BHP"):
        dtype, expected = getattr(state, part).dtype, compute_dtype(x)
        halved = part == "state_BHPN" and (dtype, expected) == (torch.bfloat16, torch.float32)
        if dtype != expected and not halved:
            raise ValueError(f"{name}.{part}: expected {expected} for inputs in {x.dtype}, got {dtype}")


def check_valid(name: str, valid: Tensor | None, shape: tuple[int, ...]) -> None:
    """Check a mask of valid steps."""
    if valid is None:
        return
    expect(name, valid, *shape)
    if valid.dtype != torch.bool:
        raise ValueError(f"{name}: expected bool, got {valid.dtype}")


def check_cu_seqlens(cu_seqlens: Tensor, batch: int, steps: int) -> None:
    """Check the bounds of packed sequences; their values only on the host, where reading them costs nothing."""
    if batch != 1:
        raise ValueError(f"cu_seqlens: packed sequences need one row, got a batch of {batch}")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2 or cu_seqlens.dtype != torch.int32:
        raise ValueError(f"cu_seqlens: expected int32 [n + 1], got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}")
    if cu_seqlens.device.type != "cpu":
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != steps or bounds != sorted(bounds):
        raise ValueError(f"cu_seqlens: bounds must grow from 0 to the {steps} steps of x_BTHP, got {bounds}")
