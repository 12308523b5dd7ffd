"""The strict complex scan, interpreted: values and all gradients against a complex128 loop."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.complex_scan import launch
from sigma_kernels.complex_scan.op import mamba3_complex_scan_interleaved
from tests.kernels.complex_scan_cases import assert_matches_complex128, make_inputs, run


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Chunks of 8 steps for 2 lanes: the interpreter walks through a scan one element at a time."""
    monkeypatch.setattr(launch, "BLOCK_T", 8)
    monkeypatch.setattr(launch, "BLOCK_LANES", 2)


def segments(lanes: int, steps: int) -> int:
    return launch._cut(torch.empty(lanes, steps, 2))[0][1]


@pytest.mark.parametrize("constant", ["", "a", "b", "ab"], ids=["all over time", "a fixed", "b fixed", "both fixed"])
@pytest.mark.parametrize("lanes, steps", [(1, 1), (3, 8), (1, 33), (5, 19)], ids=str)
def test_values_and_gradients_match_the_complex128_loop(lanes, steps, constant):
    assert_matches_complex128(make_inputs(lanes, steps, constant=constant))


def test_few_lanes_are_cut_into_segments_and_many_are_not():
    assert (segments(1, 33), segments(5, 19)) == (3, 1)
    assert segments(1, 8) == 1


@pytest.mark.parametrize("magnitude", [(0.0, 0.0), (1.5, 2.5), (0.0, 3.0)], ids=["zero", "growing", "mixed"])
@pytest.mark.parametrize("lanes, steps", [(1, 33), (5, 19)], ids=["segments", "one segment"])
def test_any_magnitude_of_a_is_right(lanes, steps, magnitude):
    assert_matches_complex128(make_inputs(lanes, steps, magnitude=magnitude))


def test_zeros_of_a_inside_a_chunk_cut_the_past_off():
    inputs = make_inputs(2, 20)
    inputs["a"][:, [3, 8, 9]] = 0
    assert_matches_complex128(inputs)


def test_a_state_of_zero_stays_zero_where_the_product_of_a_overflows():
    inputs = {
        "x": torch.zeros(1, 33, 2),
        "a": torch.full((1, 2), 1e6),
        "b": torch.ones(1, 2),
        "state": torch.zeros(1, 2),
    }
    y, last = mamba3_complex_scan_interleaved(**inputs)
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(last, torch.zeros_like(last))


def test_a_run_split_in_two_equals_the_whole_run():
    x, a, b, state = make_inputs(3, 21).values()
    whole, last = mamba3_complex_scan_interleaved(x, a, b, state)
    head, between = mamba3_complex_scan_interleaved(x[:, :10], a[:, :10], b[:, :10], state)
    tail, end = mamba3_complex_scan_interleaved(x[:, 10:], a[:, 10:], b[:, 10:], between)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-5)


def test_strided_inputs_and_gradients_are_read_right():
    inputs = make_inputs(3, 9)
    inputs["x"] = inputs["x"].transpose(0, 1).contiguous().transpose(0, 1)
    inputs["a"] = torch.cat([inputs["a"], torch.full_like(inputs["a"], torch.nan)], 1)[:, :9]
    inputs["b"] = inputs["b"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["state"] = inputs["state"][0].expand(3, 2)
    assert not any(inputs[name].is_contiguous() for name in inputs)
    assert_matches_complex128(inputs)


def test_nothing_behind_the_end_is_written_or_read():
    memory = torch.full((3, 12, 2), torch.nan)
    memory[:, :9] = make_inputs(3, 9)["x"]
    inputs = make_inputs(3, 9) | {"x": memory[:, :9]}
    assert all(bool(t.isfinite().all()) for t in run(inputs, mamba3_complex_scan_interleaved).values())


def test_only_wanted_gradients_are_made():
    inputs = make_inputs(2, 9)
    inputs["b"].requires_grad_()
    y, _ = mamba3_complex_scan_interleaved(**inputs)
    (got,) = torch.autograd.grad(y.sum(), [inputs["b"]])
    assert got.shape == inputs["b"].shape
    assert inputs["x"].grad is None


def test_two_runs_give_the_same_bits():
    inputs = make_inputs(2, 30, constant="ab")
    first, second = (run(inputs, mamba3_complex_scan_interleaved) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_forward_and_backward_are_counted():
    run(make_inputs(1, 3), mamba3_complex_scan_interleaved)
    assert counters.snapshot() == {
        "complex_scan.backward": 1, "complex_scan.forward": 1, "complex_scan.use_triton": 1,
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_without_the_kernel_being_asked_for_it_raises_and_does_not_fall_back(backend):
    dispatch.set_backend(backend)
    with pytest.raises(dispatch.BackendError, match=r"CUDA \+ Triton only"):
        mamba3_complex_scan_interleaved(**make_inputs(1, 3))
