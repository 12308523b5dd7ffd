"""The scan, forward and backward, as something that `sigma tune` can time."""

from __future__ import annotations

import torch
from torch import Tensor

from sigma_kernels.architecture import architecture
from sigma_kernels.scan.op import mamba3_scan
from sigma_kernels.scan.state import Mimo
from sigma_kernels.scan.triton_call import shape_class
from sigma_kernels.scan.triton_launch import padded_rank, tiles_of
from sigma_kernels.tuning import Tunable

LAUNCHES = [[4, None], [4, 200], [4, 168], [4, 128], [4, 96], [8, None], [8, 128], [2, None]]
TILED_LAUNCHES = [[*launch, pairs] for launch in LAUNCHES for pairs in (32, 64)]
SMALL_LAUNCHES = [[1, None], [2, None], [4, None], [8, None]]


def scan_tunable(
    shape: tuple[int, int, int, int],
    *,
    state: int,
    rank: int,
    groups: int,
    pairs: int,
    norm: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tunable:
    """A scan of random x [B, T, H, P] in `dtype`; `norm` is the one before the gate."""
    kind = shape_class(shape[3], state, rank, dtype, architecture(device))
    candidates = {
        "rows": [32, 64, 128] if rank == 1 else [16 * padded_rank(rank), 32 * padded_rank(rank)],
        **dict.fromkeys(("output", "value", "matrix", "outer") + (("norm_backward",) if norm else ()), TILED_LAUNCHES),
        "over_heads": [[warps, None, pairs] for warps in (1, 2) for pairs in (32, 64)],
        **dict.fromkeys(("phase", "phase_backward", "state_pass"), SMALL_LAUNCHES),
        "sum_rows": [8, 16, 32],
        "heads_phase": [1, 2, 4, 8, 16],
    }
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int, shift: float = 0.0) -> Tensor:
        return torch.randn(*size, generator=generator, device=device) + shift

    batch, steps, heads, head_size = shape
    per_step = [(heads, head_size)] * 2 + [(rank, groups, state)] * 2 + [(heads,)] * 3 + [(pairs,)]
    inputs = [normal(batch, steps, *size).to(dtype).requires_grad_() for size in per_step]
    learned = {
        "dt_bias_H": normal(heads, shift=-4.0),
        "in_norm_N": normal(state, shift=1.0),
        "out_norm_N": normal(state, shift=1.0),
        "in_bias_HRN": normal(heads, rank, state),
        "out_bias_HRN": normal(heads, rank, state),
        "skip_H": normal(heads),
    } | ({"y_norm_HP": normal(heads, head_size, shift=1.0)} if norm else {})
    expansions = [normal(heads, rank, head_size) for _ in range(3 if rank > 1 else 0)]
    leaves = [*inputs, *(t.requires_grad_() for t in (*learned.values(), *expansions))]
    mimo, gradient = Mimo(*expansions) if expansions else None, torch.ones_like(inputs[0])

    def call() -> list[Tensor]:
        y = mamba3_scan(*inputs, **learned, mimo=mimo)  # type: ignore[arg-type]
        assert isinstance(y, Tensor)
        return [y, *torch.autograd.grad(y, leaves, gradient)]

    return Tunable("scan", str(kind), tiles_of(kind).settings(), candidates, call)
