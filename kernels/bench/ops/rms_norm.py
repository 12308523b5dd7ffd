"""Fused residual RMSNorm against PyTorch eager, torch.compile, F.rms_norm and Liger-Kernel (where installed)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import torch
import torch._functorch.config
import torch.nn.functional as F
from registry import Case, benchmark
from torch import Tensor

from sigma_kernels.rms_norm.op import rms_norm
from sigma_kernels.rms_norm.reference import rms_norm_reference

# Rows times width of a training step: the norm of a head, of the presets' layers, and two wider ones.
SHAPES = [(1 << 20, 64), (65536, 768), (65536, 1024), (32768, 2048), (16384, 4096), (8192, 8192)]
EPS = 1e-6

Norm = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def providers() -> dict[str, Norm]:
    """All take (x, weight, residual) and return (y, sum)."""
    # a backward that is timed many times must not reuse the memory of what it saved
    torch._functorch.config.donated_buffer = False

    def functional(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, EPS), total

    def eager(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        y, total = rms_norm_reference(x, weight, residual=residual, eps=EPS)
        return y, total

    found: dict[str, Norm] = {
        "sigma": lambda x, weight, residual: rms_norm(x, weight, residual=residual, eps=EPS),
        "eager": eager,
        "compiled": torch.compile(eager, dynamic=False),
        "functional": functional,
    }
    if importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

        # no offset, statistics alone in fp32, gradients not written over dy
        found["liger"] = lambda x, weight, residual: LigerFusedAddRMSNormFunction.apply(
            x, residual, weight, EPS, 0.0, "llama", False
        )
    return found


@benchmark("rms_norm")
def cases() -> Iterator[Case]:
    """bf16 with a residual; forward reads x, residual and writes y, sum; backward reads dy, dsum, sum and writes dx."""
    for rows, width in SHAPES:
        generator = torch.Generator("cuda").manual_seed(0)
        x, residual, dy, dsum = (
            torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(4)
        )
        weight = torch.ones(width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        leaves = (x.requires_grad_(), weight, residual.requires_grad_())
        least = 4 * x.numel() * x.element_size() + 4 * rows
        for name, norm in providers().items():
            where = {"shape": f"{rows}x{width}", "dtype": "bfloat16", "provider": name, "bytes": least}
            yield Case(**where, direction="forward", run=lambda norm=norm, leaves=leaves: norm(*leaves))
            outputs = norm(*leaves)
            yield Case(
                **where,
                direction="backward",
                run=lambda outputs=outputs, leaves=leaves, upstream=(dy, dsum): torch.autograd.grad(
                    outputs, leaves, upstream, retain_graph=True
                ),
            )
