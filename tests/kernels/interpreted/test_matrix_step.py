"""Momentum and weight steps in Triton, interpreted, against the reference."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sigma_kernels import counters
from sigma_kernels.matrix_step.blocks import BlockList
from sigma_kernels.matrix_step.codes import BLOCK, decode_int8, encode_residual
from sigma_kernels.matrix_step.kernel import _one_over_power
from sigma_kernels.matrix_step.op import momentum_step, weight_step
from tests.kernels.matrix_step_cases import Batch, both, close, make_batch, masters, scales

SHAPES = [(12, 10), (1, 1), (50, 90)]  # the last takes three tiles of a matrix
GO, SKIP = torch.tensor(0.0), torch.tensor(1.0)


@triton.jit
def write_inverses(x_ptr, out_ptr, SIZE: tl.constexpr):  # pyright: ignore[reportGeneralTypeIssues]
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, _one_over_power(tl.load(x_ptr + at)))  # pyright: ignore[reportGeneralTypeIssues]


@pytest.mark.parametrize("momentum", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("form", ["nesterov", "average", "sign"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_momentum_equals_the_reference(shape, form, momentum):
    def run(batch: Batch):
        return momentum_step(
            batch.blocks, batch.gradients, batch.momentum, batch.scale, beta=0.95, form=form, found_inf=GO,
            dtype=torch.float32,
        )  # fmt: skip

    (got, g), (want, w) = both(lambda: make_batch(*shape, momentum=momentum), run)
    close(got.momentum, want.momentum)
    if got.scale is not None:
        close(got.scale, want.scale)
    close(g[0], w[0])
    assert torch.equal(g[1], w[1])


@pytest.mark.parametrize("size", [1e-43, 1e-38, 1e-35, 1e30])
def test_int8_momentum_of_any_size_equals_the_reference(size):
    def make() -> Batch:
        batch = make_batch(50, 90, momentum="int8")
        batch.gradients = [g * size for g in batch.gradients if g is not None]
        assert batch.scale is not None
        batch.scale *= size
        return batch

    def run(batch: Batch):
        return momentum_step(batch.blocks, batch.gradients, batch.momentum, batch.scale, beta=0.95)

    (got, _), (want, _) = both(make, run)
    close(got.momentum, want.momentum)
    assert got.scale is not None
    assert want.scale is not None
    torch.testing.assert_close(got.scale / size, want.scale / size, rtol=1e-5, atol=1e-2 if size < 1e-40 else 1e-6)


def test_codes_round_to_the_nearest_even():
    batch = make_batch(1, 509, momentum="int8")
    halves = torch.arange(-254, 255) / 2  # the largest is 127, so that the scale is 1
    for gradient in batch.gradients:
        gradient.copy_(halves.expand_as(gradient))
    momentum_step(batch.blocks, batch.gradients, batch.momentum, batch.scale, beta=0.0)
    assert torch.equal(batch.scale, torch.ones(5, 1))
    assert torch.equal(batch.momentum, halves.round().to(torch.int8).expand(5, 1, 509))


@pytest.mark.parametrize("size", [0.0, 1e-45])
def test_int8_momentum_of_nothing_is_zero(size):
    batch = make_batch(momentum="int8")
    for gradient in batch.gradients:
        gradient.fill_(size)
    batch.momentum.zero_()
    momentum_step(batch.blocks, batch.gradients, batch.momentum, batch.scale, beta=0.0)
    assert not batch.momentum.any()
    assert not batch.scale.any()


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, which interprets
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_spoils_its_block_of_int8_momentum_and_no_other(value):
    def run(batch: Batch):
        batch.gradients[0][-1, -1] = value
        return momentum_step(batch.blocks, batch.gradients, batch.momentum, batch.scale, beta=0.9)

    for batch, _ in both(lambda: make_batch(50, 90, momentum="int8"), run):
        finite = decode_int8(batch.momentum, batch.scale).isfinite().flatten(1)
        assert not finite[0, 2 * BLOCK :].any()
        assert finite[0, : 2 * BLOCK].all()
        assert finite[1:].all()


@pytest.mark.parametrize("form", ["nesterov", "average"])
@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 0.75, 1.0])  # products with these are exact, fused or not
def test_averages_are_those_of_lerp_to_the_bit(beta, form):
    def run(batch: Batch):
        batch.gradients = [g * torch.logspace(-4, 4, 10) for g in batch.gradients]
        return momentum_step(batch.blocks, batch.gradients, batch.momentum, beta=beta, form=form, dtype=torch.float32)

    (got, g), (want, w) = both(make_batch, run)
    assert torch.equal(got.momentum, want.momentum)
    assert torch.equal(g[0], w[0])


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.95])
def test_weight_of_the_past_and_type_of_the_gradient(beta, grad_dtype):
    def run(batch: Batch):
        return momentum_step(batch.blocks, batch.gradients, batch.momentum, beta=beta)

    (got, g), (want, w) = both(lambda: make_batch(grad_dtype=grad_dtype), run)
    close(got.momentum, want.momentum)
    close(g[0], w[0])


def test_a_missing_gradient_counts_as_zero_and_is_not_active():
    def run(batch: Batch):
        batch.gradients[2][1] = 0
        return momentum_step(batch.blocks, batch.gradients, batch.momentum, beta=0.9)

    (got, g), (want, w) = both(lambda: make_batch(absent=True), run)
    close(got.momentum, want.momentum)
    assert g[1].tolist() == w[1].tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("momentum", ["fp32", "int8"])
def test_a_gradient_of_nan_is_active(momentum):
    batch = make_batch(momentum=momentum)
    batch.gradients[0].fill_(float("nan"))
    assert momentum_step(batch.blocks, batch.gradients, batch.momentum, batch.scale, beta=0.9)[1].tolist() == [1] * 5


@pytest.mark.parametrize("momentum", ["fp32", "int8"])
def test_a_skipped_momentum_step_changes_no_state(momentum):
    batch, before = make_batch(momentum=momentum), make_batch(momentum=momentum)
    momentum_step(batch.blocks, batch.gradients, batch.momentum, batch.scale, beta=0.9, found_inf=SKIP)
    assert torch.equal(batch.momentum, before.momentum)
    assert batch.scale is None or torch.equal(batch.scale, before.scale)


@pytest.mark.parametrize("decay", ["plain", "cautious", "prox", "cautious_prox"])
@pytest.mark.parametrize("kind", [None, "matrix", "row", "column"])
@pytest.mark.parametrize("residual", [False, True], ids=["fp32", "residual"])
def test_weights_equal_the_reference(residual, kind, decay):
    def run(batch: Batch):
        weight_step(
            batch.blocks, batch.weights, batch.direction, batch.rate, batch.decay,
            active_K=torch.tensor([1, 1, 0, 1, 1], dtype=torch.int32), scale=scales(batch, kind),
            residual_KMN=batch.residual, decay=decay, found_inf=GO,
        )  # fmt: skip

    (got, _), (want, _) = both(lambda: make_batch(residual=residual), run)
    for a, b in zip(masters(got), masters(want), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5 if residual else 1e-5, atol=1e-6)  # a step of the residual is 1.5e-5
    untouched = make_batch(residual=residual)
    assert torch.equal(got.weights[1][:8], untouched.weights[1][:8])
    assert torch.equal(got.weights[2][0], untouched.weights[2][0])
    assert not torch.equal(got.weights[0], untouched.weights[0])


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e20, 8e37])
def test_weights_of_any_size_equal_the_reference(size):
    def make() -> Batch:
        batch = make_batch(residual=True)
        pairs = [encode_residual(w.float() * size) for w in batch.weights]
        batch.weights[:] = [coarse for coarse, _ in pairs]
        batch.residual = torch.cat([f if f.ndim == 3 else f[None, -12:] for _, f in pairs]).contiguous()
        return batch

    def run(batch: Batch):
        weight_step(
            batch.blocks, batch.weights, batch.direction * 0, batch.rate, batch.decay,
            active_K=torch.ones(5, dtype=torch.int32), residual_KMN=batch.residual,
        )  # fmt: skip

    (got, _), (want, _) = both(make, run)
    assert torch.isfinite(masters(want)[0]).all()
    torch.testing.assert_close(masters(got)[0] / size, masters(want)[0] / size, rtol=2e-5, atol=1e-6)


def test_the_inverse_of_a_power_of_two_is_exact():
    powers = 2.0 ** torch.arange(-128, 128).clamp(-126, 126)  # beyond them the inverse is subnormal
    got = torch.empty_like(powers)
    write_inverses[(1,)](powers, got, SIZE=256)
    assert torch.equal(got, 1 / powers)


@pytest.mark.parametrize("decay", [1.0, 0.99])
def test_every_bf16_weight_takes_the_residual_of_the_reference(decay):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    every = every[every.isfinite()][None]
    fine = (torch.arange(every.numel()) % 253 - 126).to(torch.int8)[None, None]  # 127 takes the largest to infinity

    def run(batch: Batch):
        blocks, weights, residual = BlockList([every], [(0, 1)]), [every.clone()], fine.clone()
        one = torch.ones(1)
        weight_step(
            blocks, weights, torch.zeros_like(fine, dtype=torch.bfloat16), one, decay * one,
            active_K=torch.ones(1, dtype=torch.int32), residual_KMN=residual,
        )  # fmt: skip
        return weights[0], residual

    (_, got), (_, want) = both(make_batch, run)
    assert torch.equal(got[0], want[0])
    if decay == 1:
        assert torch.equal(got[1], want[1])
    else:
        close(got[1], want[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_of_every_shape_and_expanded_rates(shape):
    def run(batch: Batch):
        one = torch.tensor(0.02).expand(5)
        weight_step(
            batch.blocks, batch.weights, batch.direction, one, one, active_K=torch.ones(5, dtype=torch.int32),
            scale=scales(batch, "row"),
        )  # fmt: skip

    (got, _), (want, _) = both(lambda: make_batch(*shape), run)
    for a, b in zip(got.weights, want.weights, strict=True):
        close(a, b)


def test_a_skipped_weight_step_changes_nothing():
    batch, before = make_batch(residual=True), make_batch(residual=True)
    ones = torch.ones(5, dtype=torch.int32)
    weight_step(
        batch.blocks, batch.weights, batch.direction, batch.rate, batch.decay, active_K=ones,
        residual_KMN=batch.residual, found_inf=SKIP,
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(batch.weights, before.weights, strict=True))
    assert torch.equal(batch.residual, before.residual)


def test_new_gradient_tensors_are_found_in_the_next_step():
    batch, other = make_batch(), make_batch()
    momentum_step(batch.blocks, batch.gradients, batch.momentum, beta=0.0)
    moved = [None if g is None else 2 * g for g in batch.gradients]
    momentum_step(batch.blocks, moved, batch.momentum, beta=0.0)
    momentum_step(other.blocks, moved, other.momentum, beta=0.0)
    assert torch.equal(batch.momentum, other.momentum)


def test_each_step_is_counted():
    batch = make_batch()
    momentum_step(batch.blocks, batch.gradients, batch.momentum, beta=0.9)
    assert counters.get("matrix_step.momentum") == 1
    assert counters.get("matrix_step.use_triton") == 1
