"""The experts' activation relu(g)^2 * u: the kernels against the eager reference, and torch.compile of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch._functorch.config
from floors import Work
from registry import Case, benchmark
from torch import Tensor

from sigma_kernels.relu2_gate.op import relu2_gate
from sigma_kernels.relu2_gate.reference import relu2_gate_reference

# Rows of a training step times the two halves of experts' hidden widths.
SHAPES = [(131072, 512), (65536, 2048), (32768, 4096)]
DTYPE = torch.bfloat16


def providers() -> dict[str, Callable[[Tensor], Tensor]]:
    """All take `up`."""
    # a backward that is timed many times must not reuse the memory of what it saved
    torch._functorch.config.donated_buffer = False
    compiled = torch.compile(relu2_gate_reference, dynamic=False)
    return {"sigma": relu2_gate, "eager": relu2_gate_reference, "compiled": compiled}


def both(gate: Callable[[Tensor], Tensor], up: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward."""
    return torch.autograd.grad(gate(up), up, dout)


@benchmark("relu2_gate")
def cases() -> Iterator[Case]:
    """bf16; forward reads up and writes its half; the backward reads up and dout and writes the gradient of up."""
    for rows, width in SHAPES:
        generator = torch.Generator("cuda").manual_seed(0)
        up = torch.randn(rows, width, device="cuda", dtype=DTYPE, generator=generator)
        dout = torch.randn(rows, width // 2, device="cuda", dtype=DTYPE, generator=generator)
        up.requires_grad_()
        forward, backward = up.nbytes + dout.nbytes, 2 * up.nbytes + dout.nbytes
        for name, gate in providers().items():
            where = {"shape": f"{rows}x{width}", "dtype": "bfloat16", "provider": name}
            work = (Work(forward, 0), Work(backward, 0))
            yield Case(**where, direction="forward", bytes=forward, work=work[:1], run=partial(gate, up))
            yield Case(
                **where,
                direction="forward+backward",
                bytes=forward + backward,
                work=work,
                run=partial(both, gate, up, dout),
            )
