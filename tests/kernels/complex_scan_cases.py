"""What the tests of the complex scan share: inputs of several kinds, and values with all gradients of an op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sigma_kernels.complex_scan.op import mamba3_complex_scan_interleaved
from sigma_kernels.complex_scan.reference import complex_scan_reference

NAMES = ("x", "a", "b", "state")


def make_inputs(
    lanes: int, steps: int, *, constant: str = "", magnitude: tuple[float, float] = (0.5, 1.02), device: str = "cpu"
) -> dict[str, Tensor]:
    """Normal x, b and state; a of any angle and a magnitude in the given range. `constant` names what has no time."""
    g = torch.Generator().manual_seed(lanes * 1000 + steps)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, 2, generator=g)

    def over_time(name: str) -> tuple[int, ...]:
        return (lanes,) if name in constant else (lanes, steps)

    low, high = magnitude
    size = low + (high - low) * torch.rand(*over_time("a"), generator=g)
    turn = 6.283185307 * torch.rand(*over_time("a"), generator=g)
    a = torch.stack([size * turn.cos(), size * turn.sin()], -1)
    inputs = {"x": normal(lanes, steps), "a": a, "b": normal(*over_time("b")), "state": normal(lanes)}
    return {name: t.to(device) for name, t in inputs.items()}


def run(inputs: dict[str, Tensor], op: Callable[..., tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """y, the last state and the gradient of every input for a random projection of both."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    outputs = op(*(leaves[name] for name in NAMES))
    g = torch.Generator().manual_seed(1)
    above = [torch.randn(t.shape, generator=g).to(t) for t in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), above)
    values = dict(zip(("y", "last"), (t.detach() for t in outputs), strict=True))
    return values | {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def assert_matches_complex128(inputs: dict[str, Tensor]) -> None:
    """Values and every gradient within 1e-5 of the loop in complex128, relative to the norm of each."""
    got = run(inputs, mamba3_complex_scan_interleaved)
    want = run({name: t.double().cpu() for name, t in inputs.items()}, complex_scan_reference)
    for name, exact in want.items():
        assert got[name].shape == exact.shape, name
        error = float((got[name].double().cpu() - exact).norm() / exact.norm().clamp(min=1e-30))
        assert error < 1e-5, f"{name}: relative error {error:.2e}"
