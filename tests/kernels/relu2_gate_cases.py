"""What the tests of the ReLU^2 gate share: inputs, its float64 formula by hand, the op with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sigma_kernels.relu2_gate.op import relu2_gate
from sigma_kernels.relu2_gate.reference import relu2_gate_reference
from tests.kernels.row_cases import normal, same_bits


class Inputs(NamedTuple):
    """`dout` is the gradient that arrives from above."""

    up: Tensor
    dout: Tensor


def make_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Inputs:
    """Normal inputs for an output of this shape; some gates are exactly zero."""
    up = normal(*shape[:-1], 2 * shape[-1], dtype=dtype)
    up[..., : shape[-1] : 5] = 0
    return Inputs(up, normal(*shape, seed=1, dtype=dtype))


def special_inputs(dtype: torch.dtype) -> Inputs:
    """One row with every combination of g, u and dout that are NaN, infinite, zero, huge, tiny or ordinary."""
    info = torch.finfo(dtype)
    positive = [float("inf"), info.max, 1.5, info.tiny, info.tiny * info.eps, 0.0]
    values = [float("nan"), *positive, *(-value for value in positive)]
    gate, value, dout = torch.tensor(list(product(values, repeat=3)), dtype=torch.float64).to(dtype).mT[:, None]
    return Inputs(torch.cat((gate, value), dim=-1), dout.contiguous())


def exact(inputs: Inputs) -> dict[str, Tensor]:
    """Value and gradient in float64."""
    (gate, value), dout = inputs.up.double().chunk(2, dim=-1), inputs.dout.double()
    opened = torch.where(gate > 0, gate, torch.zeros_like(gate))
    gradients = 2 * opened * value * dout, opened * opened * dout
    return {"out": opened * opened * value, "dup": torch.cat(gradients, dim=-1)}


def run(inputs: Inputs, op: Callable[[Tensor], Tensor] = relu2_gate) -> dict[str, Tensor]:
    """Value and gradient of `op`, under the names of `exact`."""
    up = inputs.up.detach().requires_grad_()
    out = op(up)
    return {"out": out.detach(), "dup": torch.autograd.grad(out, up, inputs.dout)[0]}


def assert_rounded_once(got: dict[str, Tensor], want: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Within half a unit in the last place of `dtype`, and of the few roundings in fp32 (fp64) before it."""
    info, inner = torch.finfo(dtype), torch.finfo(torch.promote_types(dtype, torch.float32))
    assert got.keys() == want.keys()
    for name, exactly in want.items():
        assert (got[name].dtype, got[name].shape) == (dtype, exactly.shape), name
        error = (got[name].double() - exactly.to(got[name].device)).abs().cpu()
        allowed = (info.eps / 2 + 2 * inner.eps) * exactly.abs().cpu() + info.tiny * info.eps
        assert bool((error <= allowed).all()), f"{name}: {(error / allowed).max().item()} times what is allowed"


def assert_bits(inputs: Inputs) -> None:
    """Those of the reference, where the inputs are and on the CPU."""
    got = run(inputs)
    for there in (inputs, Inputs(inputs.up.cpu(), inputs.dout.cpu())):
        want = run(there, relu2_gate_reference)
        assert [name for name in want if not same_bits(got[name].to(there.up.device), want[name])] == []
