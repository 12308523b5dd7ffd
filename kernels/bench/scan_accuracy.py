"""How far the scans are from fp64, on the same rounded inputs: relative L2 of the output and of every gradient.

    python kernels/bench/scan_accuracy.py [--shape B1,T4096,H4,P64,N128,R1] [--provider sigma] [--dtype float32]

Appends to accuracy.csv and ends with 1 when ours is outside its gates. Time the others first: they tune themselves at
the first shape they see, and this one is small.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from floors import ScanShape
from record import require_cuda, stamp
from registry import Skip
from scan_inputs import ScanInputs, exact, make_inputs, results
from scan_providers import Bound, Provider, fla_composed, mamba2, official_heavy_tail, sigma, simple_gla
from torch import Tensor

TABLE = Path(__file__).with_name("accuracy.csv")
SLICE = ScanShape(batch=1, steps=4096, heads=4)
COLUMNS = (
    "date", "commit", "device", "torch", "triton", "shape", "dtype", "provider", "tensor", "error", "gate", "within",
)  # fmt: skip
# The gates of a 16-bit scan at T = 4096; what is not named here has the last one.
GATES = {"y": 3e-3, "x_BTHP": 5e-3, "z_BTHP": 5e-3, "in_BTRGN": 6e-3, "out_BTRGN": 6e-3, "bias_HRN": 6e-3, "": 1e-2}
FP32_GATES = {"y": 1e-5, "": 5e-5}
MATRIX_LEAVES = ("in_BTRGN", "out_BTRGN", "in_norm_N", "out_norm_N", "in_bias_HRN", "out_bias_HRN")

Errors = dict[str, float]


def relative_l2(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| in fp64."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def gate_of(tensor: str, dtype: torch.dtype) -> float:
    """The largest error that `y` or `d <input>` may have."""
    gates = FP32_GATES if dtype == torch.float32 else GATES
    name = tensor.removeprefix("d ")
    return next(limit for end, limit in gates.items() if name.endswith(end) and (end != "y" or name == "y"))


def compare(got: dict[str, Tensor], want: dict[str, Tensor]) -> Errors:
    """Relative L2 of everything that both have."""
    return {name: relative_l2(got[name], value) for name, value in want.items()}


def _same_function(provider: Provider, i: ScanInputs) -> Errors:
    return compare(results(provider(i).forward, i.leaves(), i.dy_BTHP), exact(i))


def interleaved(state: int) -> Tensor:
    """Where each channel of the interleaved pairing stands in the half-split one: 2i at i, 2i + 1 at i + N / 2."""
    return torch.arange(state).view(2, state // 2).T.flatten()


def _other_pairing(provider: Provider, i: ScanInputs) -> Errors:
    """The official SISO kernels pair channels (2i, 2i + 1); give them the channels so, and take gradients back."""
    order = interleaved(i.shape.state).to(i.dy_BTHP.device)
    there = i.map(lambda name, t: t[..., order].contiguous() if name in MATRIX_LEAVES else t)
    got = results(provider(there).forward, there.leaves(), i.dy_BTHP)
    back = {name: t[..., order.argsort()] if name.removeprefix("d ") in MATRIX_LEAVES else t for name, t in got.items()}
    return compare(back, exact(i))


def linear_scan(q_BTHN: Tensor, k_BTHN: Tensor, v_BTHP: Tensor, log_decay_BTH: Tensor) -> Tensor:
    """y_t = sum_{s <= t} exp(sum of log decays after s up to t) <q_t, k_s> v_s, by the whole T x T matrix."""
    steps = log_decay_BTH.shape[1]
    total_BHT = log_decay_BTH.cumsum(1).mT
    later = torch.ones(steps, steps, dtype=torch.bool, device=v_BTHP.device).tril()
    decay = (total_BHT[..., :, None] - total_BHT[..., None, :]).masked_fill(~later, float("-inf")).exp()
    scores = torch.einsum("bthn,bshn->bhts", q_BTHN, k_BTHN) * decay
    return torch.einsum("bhts,bshp->bthp", scores, v_BTHP)


def _exact_gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    return linear_scan(q, k, v, log_decay)


def _exact_mamba2(
    x: Tensor, dd_dt: Tensor, a_H: Tensor, in_: Tensor, out: Tensor, skip: Tensor, z: Tensor, dt_bias: Tensor
) -> Tensor:
    dt_BTH = F.softplus(dd_dt + dt_bias)
    repeat = x.shape[2] // in_.shape[3]
    k, q = (m[:, :, 0].repeat_interleave(repeat, 2) for m in (in_, out))
    return (linear_scan(q, k * dt_BTH[..., None], x, dt_BTH * a_H) + skip[:, None] * x) * F.silu(z)


def _own_function(provider: Provider, function: Callable[..., Tensor], i: ScanInputs) -> Errors:
    """Another scan than Mamba-3: against `function` of the provider's own leaves in fp64."""
    bound: Bound = provider(i)
    leaves = {str(n): leaf for n, leaf in enumerate(bound.leaves)}
    wide = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    want = results(lambda: function(*wide.values()), wide, i.dy_BTHP)
    return compare(results(bound.forward, leaves, i.dy_BTHP), want)


PROVIDERS: dict[str, Callable[[ScanInputs], Errors]] = {
    "sigma": lambda i: _same_function(sigma, i),
    "mamba3-official": lambda i: _other_pairing(official_heavy_tail, i),
    "fla-composed": lambda i: _same_function(fla_composed, i),
    "mamba2": lambda i: _own_function(mamba2, _exact_mamba2, i),
    "fla-simple-gla": lambda i: _own_function(simple_gla, _exact_gla, i),
}


@cache
def errors(provider: str, shape: ScanShape, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> Errors:
    """Relative L2 by tensor: `y` and `d <leaf>` (numbered for a provider of another function)."""
    return PROVIDERS[provider](make_inputs(shape, device, dtype))


def error_of(provider: str, shape: ScanShape, direction: str) -> float:
    """One figure for a row of results.csv, on a slice with the same P, N and R: of y, or the worst of all gradients.

    Raises:
        Skip: nothing is known about this provider's exact result.
    """
    if provider not in PROVIDERS:
        raise Skip(f"{provider} is not compared with fp64")
    found = errors(provider, replace(shape, batch=SLICE.batch, steps=SLICE.steps, heads=SLICE.heads))
    return max(found.values()) if direction == "forward+backward" else found["y"]


def parse_shape(text: str) -> ScanShape:
    """`B1,T4096,H4,P64,N128,R1` in any order; what is missing is as in the slice."""
    letters = {"B": "batch", "T": "steps", "H": "heads", "P": "head_size", "N": "state", "R": "rank", "G": "groups"}
    parts = [re.fullmatch(r"([A-Z])(\d+)", part) for part in text.split(",")]
    if any(part is None or part[1] not in letters for part in parts):
        raise argparse.ArgumentTypeError(f"expected sizes like B1,T4096,H4,P64,N128,R1, got {text}")
    return replace(SLICE, **{letters[part[1]]: int(part[2]) for part in parts if part})


def main(arguments: list[str]) -> int:
    """Print and append the table; 1 when ours is outside a gate."""
    parser = argparse.ArgumentParser(prog="scan_accuracy.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=parse_shape, action="append", help="may be given several times")
    parser.add_argument("--provider", choices=list(PROVIDERS), action="append", help="may be given several times")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    chosen = parser.parse_args(arguments)
    require_cuda()
    origin, dtype, failed = stamp(), getattr(torch, chosen.dtype), False
    new = not TABLE.exists()
    with TABLE.open("a", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        if new:
            table.writerow(COLUMNS)
        for shape in chosen.shape or [SLICE]:
            for provider in chosen.provider or list(PROVIDERS):
                try:
                    found = errors(provider, shape, dtype)
                except Skip as reason:
                    print(f"skipped {shape} {provider}: {reason}", flush=True)
                    continue
                for tensor, error in found.items():
                    gate = gate_of(tensor, dtype)
                    failed |= provider == "sigma" and not error <= gate
                    row = (str(shape), chosen.dtype, provider, tensor, f"{error:.2e}", f"{gate:.0e}", error <= gate)
                    table.writerow([*origin.values(), *row])
                    print(*row, sep="\t", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
