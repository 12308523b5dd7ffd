"""The strict complex scan on a GPU: values and all gradients within 1e-5 of a complex128 loop."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters
from sigma_kernels.complex_scan import op
from tests.kernels.complex_scan_cases import assert_matches_complex128, make_inputs, run

pytestmark = pytest.mark.gpu

SCAN = op.mamba3_complex_scan_interleaved
# One program; few lanes and a long time (segments); many lanes; nothing a multiple of a tile.
SIZES = [(1, 1), (3, 50), (1, 4097), (7, 1000), (600, 65), (4099, 3)]


@pytest.mark.parametrize("constant", ["", "a", "b", "ab"], ids=["all over time", "a fixed", "b fixed", "both fixed"])
@pytest.mark.parametrize("lanes, steps", SIZES, ids=str)
def test_values_and_gradients_match_the_complex128_loop(lanes, steps, constant):
    magnitude = (0.5, 0.999) if constant else (0.5, 1.02)
    assert_matches_complex128(make_inputs(lanes, steps, constant=constant, magnitude=magnitude, device="cuda"))


@pytest.mark.parametrize("magnitude", [(0.0, 0.0), (1.1, 1.3), (0.0, 2.0)], ids=["zero", "growing", "mixed"])
@pytest.mark.parametrize("lanes, steps", [(2, 190), (300, 64)], ids=str)
def test_any_magnitude_of_a_is_right(lanes, steps, magnitude):
    assert_matches_complex128(make_inputs(lanes, steps, magnitude=magnitude, device="cuda"))


def test_strided_inputs_are_read_right():
    inputs = make_inputs(33, 70, device="cuda")
    inputs["x"] = inputs["x"].transpose(0, 1).contiguous().transpose(0, 1)
    inputs["a"] = torch.cat([inputs["a"], torch.full_like(inputs["a"], torch.nan)], 1)[:, :70]
    assert_matches_complex128(inputs)


def test_poisoned_memory_past_the_end_reaches_nothing():
    memory = {name: torch.full((t.numel() + 4096,), torch.nan, device="cuda")
              for name, t in make_inputs(5, 70).items()}  # fmt: skip
    inputs = make_inputs(5, 70, device="cuda")
    for name, t in inputs.items():
        memory[name][: t.numel()] = t.flatten()
    poisoned = {name: memory[name][: t.numel()].view(t.shape) for name, t in inputs.items()}
    got, want = run(poisoned, SCAN), run(inputs, SCAN)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_two_runs_give_the_same_bits():
    inputs = make_inputs(3, 5000, constant="ab", magnitude=(0.9, 0.999), device="cuda")
    first, second = (run(inputs, SCAN) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_kernel_ran():
    before = counters.get("complex_scan.use_triton"), counters.get("complex_scan.backward")
    run(make_inputs(2, 5, device="cuda"), SCAN)
    assert (counters.get("complex_scan.use_triton"), counters.get("complex_scan.backward")) == (
        before[0] + 1, before[1] + 1,
    )  # fmt: skip
