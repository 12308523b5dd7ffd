"""The decode step, each call replayed from a CUDA graph: ours, the PyTorch reference, and the official Triton step.

The official step takes matrices that are already normalised and dt that is already positive, is rank 1, and writes an
fp32 state into new memory; ours does the norm and everything else inside, in place. `sweep()` times the launch shapes:

    PYTHONPATH=kernels/bench:kernels:app:. python -c "from ops.scan_step import sweep; sweep()"
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import peers
import torch
import torch.nn.functional as F
from floors import Work
from graph import captured
from registry import Case, Skip, benchmark
from timing import interleave
from torch import Tensor

from sigma_kernels.scan import step_kernel
from sigma_kernels.scan.op import mamba3_step
from sigma_kernels.scan.prepare import heavy_tail
from sigma_kernels.scan.state import Mamba3State, Mimo
from sigma_kernels.scan.step import mamba3_step_reference


@dataclass(frozen=True)
class StepShape:
    """Sizes of one decode step; half of the channels rotate."""

    batch: int
    heads: int
    head_size: int = 64
    state: int = 128
    rank: int = 1

    @property
    def pairs(self) -> int:
        return self.state // 4

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads} P{self.head_size} N{self.state} R{self.rank}"

    def bytes(self, dtype: torch.dtype) -> int:
        """The state with its small parts read and written, the bf16 inputs read and y written, once."""
        heads = self.batch * self.heads
        state = heads * self.head_size * self.state * dtype.itemsize
        small = 4 * heads * (self.rank * self.state + self.head_size + self.pairs)
        inputs = 2 * (heads * (3 * self.head_size + 3) + self.batch * (2 * self.rank * self.state + self.pairs))
        return 2 * (state + small) + inputs


# The bar's shape first; then smaller batches, half the heads, the presets' small state with MIMO, a wide one.
SHAPES = [
    StepShape(128, 64),
    StepShape(1, 64),
    StepShape(8, 64),
    StepShape(32, 64),
    StepShape(256, 64),
    StepShape(128, 32),
    StepShape(128, 64, state=64, rank=4),
    StepShape(128, 64, rank=4),
    StepShape(128, 24, head_size=128, state=256),
]


@dataclass
class Inputs:
    """Arguments of the step as a model gives them: bf16 columns of one projection, fp32 parameters."""

    state: Mamba3State
    tensors: tuple[Tensor, ...]
    parameters: dict[str, Any]


def make_inputs(shape: StepShape, dtype: torch.dtype) -> Inputs:
    """Random values on the GPU; `dtype` is that of the large state."""
    g = torch.Generator("cuda").manual_seed(0)
    batch, heads, size, n, rank, pairs = (*vars(shape).values(), shape.pairs)

    def normal(*sizes: int, shift: float = 0.0) -> Tensor:
        return torch.randn(*sizes, device="cuda", generator=g) + shift

    widths = [heads * size, heads * size, rank * n, rank * n, heads, heads, heads, pairs]
    shapes = [(heads, size)] * 2 + [(rank, 1, n)] * 2 + [(heads,)] * 3 + [(pairs,)]
    columns = normal(batch, sum(widths)).bfloat16().split(widths, dim=1)
    tensors = tuple(t.unflatten(1, s) for t, s in zip(columns, shapes, strict=True))
    mimo = Mimo(*(normal(heads, rank, size) for _ in range(3))) if rank > 1 else None
    parameters = {
        "dt_bias_H": normal(heads, shift=-3.0),
        "in_norm_N": normal(n, shift=1.0),
        "out_norm_N": normal(n, shift=1.0),
        "in_bias_HRN": normal(heads, rank, n, shift=1.0),
        "out_bias_HRN": normal(heads, rank, n, shift=1.0),
        "skip_H": normal(heads),
        "mimo": mimo,
    }
    state = Mamba3State.zeros(batch, heads=heads, head_size=size, state_size=n, rank=rank, pairs=pairs, device="cuda")
    state.state_BHPN = normal(batch, heads, size, n).to(dtype)
    return Inputs(state, tensors, parameters)


def sigma(inputs: Inputs) -> Callable[[], object]:
    """Our op, by its public entrance."""
    return lambda: mamba3_step(inputs.state, *inputs.tensors, **inputs.parameters)


def eager(inputs: Inputs) -> Callable[[], object]:
    """The PyTorch reference."""
    return lambda: mamba3_step_reference(inputs.state, *inputs.tensors, **inputs.parameters)


def official(inputs: Inputs) -> Callable[[], object]:
    """mamba_ssm's Triton step on what its layer would hand over; only rank 1 and an fp32 state."""
    x, z, in_, out, dd_dt, dd_a, trap, angle = inputs.tensors
    p, state = inputs.parameters, inputs.state
    if p["mimo"] is not None or state.state_BHPN.dtype != torch.float32:
        raise Skip("the official Triton step is rank 1 with an fp32 state")
    step = peers.mamba3_siso_step()
    key, query = (F.rms_norm(t[:, 0].float(), t.shape[-1:]).bfloat16() for t in (in_, out))
    dt = F.softplus(dd_dt + p["dt_bias_H"])
    decay = -dt * heavy_tail(dd_a.float())
    angles = angle[:, None].expand(-1, x.shape[1], -1).contiguous()
    x, z, trap = x.contiguous(), z.contiguous(), trap.contiguous()
    before = (torch.zeros(angles.shape, device="cuda"), state.state_BHPN, state.key_BRHN[:, 0], state.x_BHP)
    biases = p["out_bias_HRN"][:, 0], p["in_bias_HRN"][:, 0]
    rest = {"D": p["skip_H"], "Z": z, "Input_States": before}
    return lambda: step(query, key, x, decay, dt, trap, *biases, angles, **rest)


PROVIDERS = {"sigma": sigma, "eager": eager, "official": official}


@dataclass
class Replay:
    """What a case runs; its tensors and its graph exist from `setup` on."""

    provider: Callable[[Inputs], Callable[[], object]]
    shape: StepShape
    dtype: torch.dtype
    _replay: Callable[[], object] = field(init=False)

    def setup(self) -> None:
        """Make the inputs and capture; raises Skip where the provider cannot do the shape."""
        self._replay = captured(self.provider(make_inputs(self.shape, self.dtype)))

    def __call__(self) -> object:
        return self._replay()


@benchmark("scan_step")
def cases() -> Iterator[list[Case]]:
    """One token for a batch; the state in bf16 and in fp32, providers timed in turn."""
    for shape, dtype in itertools.product(SHAPES, (torch.bfloat16, torch.float32)):
        group = []
        for name, provider in PROVIDERS.items():
            replay, moved = Replay(provider, shape, dtype), shape.bytes(dtype)
            group.append(
                Case(
                    shape=str(shape),
                    dtype=f"state {str(dtype).removeprefix('torch.')}",
                    provider=name,
                    direction="inference",
                    bytes=moved,
                    run=replay,
                    work=(Work(moved, 0),),
                    setup=replay.setup,
                )
            )
        yield group


SWEPT = {
    "ROWS": (16, 32, 64),
    "CHANNELS_PER_THREAD": (1, 2, 4),
    "MOST_REGISTERS": (None, 96, 128, 168),
}


def sweep(shape: StepShape = SHAPES[0], dtype: torch.dtype = torch.bfloat16) -> None:
    """Print microseconds and TB/s of every combination of the kernel's launch constants for one shape."""
    names = ("ROWS", "ROWS_WHOLE", "CHANNELS_PER_THREAD", "MOST_REGISTERS")
    defaults = {name: getattr(step_kernel, name) for name in names}
    moved = shape.bytes(dtype)
    print(f"{shape}, state {dtype}, {moved / 1e6:.0f} MB; defaults {defaults}")
    print("rows channels/thread registers warps        us   TB/s")
    capped = dtype == torch.bfloat16 and shape.rank == 1  # only then does the kernel limit its registers
    swept = SWEPT if capped else SWEPT | {"MOST_REGISTERS": (None,)}
    try:
        for rows, channels, registers in itertools.product(*swept.values()):
            step_kernel.ROWS = step_kernel.ROWS_WHOLE = rows
            step_kernel.CHANNELS_PER_THREAD, step_kernel.MOST_REGISTERS = channels, registers
            warps = step_kernel.tile_of(shape.head_size, shape.state, shape.rank, dtype)["num_warps"]
            replay = Replay(sigma, shape, dtype)
            replay.setup()
            us = 1e3 * interleave([replay])[0].median
            print(f"{rows:4} {channels:15} {registers!s:>9} {warps:5} {us:9.1f} {moved / us / 1e6:6.2f}", flush=True)
    finally:
        for name, value in defaults.items():
            setattr(step_kernel, name, value)
