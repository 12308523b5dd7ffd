"""Momentum and weight steps by the reference, the codes that store them in fewer bits, and their kernels compile."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels.matrix_step.codes import (
    BLOCK,
    blocks_of,
    decode_int8,
    decode_residual,
    encode_int8,
    encode_residual,
)
from sigma_kernels.matrix_step.op import momentum_step, weight_step
from tests.kernels.compile_only import EVERY_CAPABILITY, assert_lean, compile_kernel
from tests.kernels.matrix_step_cases import draw, make_batch, scales

SKIP = torch.tensor(1.0)
MOST_REGISTERS = 96  # of a thread: five programs of four warps on a multiprocessor


# ---- codes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 50, 90)], ids=str)
def test_int8_is_within_half_a_step_of_its_block(shape):
    values = draw(*shape, seed=1) * torch.logspace(-3, 3, shape[0])[:, None, None]
    codes, scale = encode_int8(values)
    assert codes.dtype == torch.int8
    assert scale.shape == (shape[0], blocks_of(shape[1] * shape[2]))
    step = scale.repeat_interleave(BLOCK, dim=1)[:, : shape[1] * shape[2]].reshape(shape)
    assert bool(((decode_int8(codes, scale) - values).abs() <= 0.5001 * step).all())
    assert codes.abs().max() == 127


def test_int8_of_zeros_is_zero():
    codes, scale = encode_int8(torch.zeros(2, 3, 4))
    assert not bool(decode_int8(codes, scale).any())


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-37, 2e-36, 3e38])
def test_int8_of_the_smallest_and_largest_numbers_is_within_half_a_step_or_zero(size):
    values = torch.tensor([[[size, -size / 2, 0.0]]])
    codes, scale = encode_int8(values)
    step = scale.item() if size >= 127 * 2.0**-126 else 2 * values.abs().max().item()
    assert (decode_int8(codes, scale).double() - values.double()).abs().max() <= 0.5001 * step


def test_bf16_with_a_residual_keeps_24_bits():
    values = draw(100, 100, seed=2) * torch.logspace(-20, 20, 100)[:, None]
    coarse, fine = encode_residual(values)
    assert (coarse.dtype, fine.dtype) == (torch.bfloat16, torch.int8)
    error = (decode_residual(coarse, fine).double() - values.double()).abs() / values.double().abs()
    assert error.max() <= 2.0**-7 / 508 * 1.01
    assert ((coarse.double() - values.double()).abs() / values.double().abs()).max() > 100 * error.max()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, -1e-30, 1.0, -2.0, 3e38])
def test_a_residual_of_special_values_is_finite_and_small(value):
    coarse, fine = encode_residual(torch.tensor([value]))
    assert decode_residual(coarse, fine).item() == pytest.approx(value, rel=1e-5, abs=1e-30)


def test_small_steps_add_up_with_a_residual_and_are_lost_without():
    weight, residual = encode_residual(torch.ones(1))
    plain = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(100):
        weight, residual = encode_residual(decode_residual(weight, residual) + 1e-4)
        plain = plain + 1e-4
    assert decode_residual(weight, residual).item() == pytest.approx(1.01, rel=2e-3)
    assert plain.item() == 1.0


# ---- the steps, by hand ----------------------------------------------------------------------------------------------


def test_momentum_is_an_average_and_nesterov_mixes_the_gradient_in_once_more():
    forms = {}
    for form in ("nesterov", "average", "sign"):
        batch = make_batch()
        past, grad = batch.momentum[0].clone(), batch.gradients[0]
        out, active = momentum_step(
            batch.blocks, batch.gradients, batch.momentum, beta=0.9, form=form, dtype=torch.float32
        )
        average = 0.9 * past + 0.1 * grad
        torch.testing.assert_close(batch.momentum[0], average)
        forms[form] = out[0]
        assert active.tolist() == [1] * 5
    torch.testing.assert_close(forms["nesterov"], 0.1 * grad + 0.9 * average)
    torch.testing.assert_close(forms["average"], average)
    assert torch.equal(forms["sign"], average.sign())


def test_fused_parts_and_experts_are_blocks_in_order():
    batch = make_batch()
    momentum_step(batch.blocks, batch.gradients, batch.momentum, beta=0.0)
    want = torch.cat([batch.gradients[0][None], batch.gradients[1][None, 8:], batch.gradients[2]])
    assert torch.equal(batch.momentum, want)


def test_a_missing_gradient_decays_the_momentum_and_is_not_active():
    batch = make_batch(absent=True)
    past = batch.momentum[1].clone()
    _, active = momentum_step(batch.blocks, batch.gradients, batch.momentum, beta=0.9)
    torch.testing.assert_close(batch.momentum[1], 0.9 * past)
    assert active.tolist() == [1, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", [None, "matrix", "row", "column"])
def test_the_weight_step_is_decay_and_a_scaled_direction(kind):
    batch = make_batch()
    before, scale = batch.weights[0].clone(), scales(batch, kind)
    weight_step(
        batch.blocks, batch.weights, batch.direction, batch.rate, batch.decay - 0.1,
        active_K=torch.ones(5, dtype=torch.int32), scale=scale,
    )  # fmt: skip
    update = batch.direction[0].float() * (1 if scale is None else scale[0])
    torch.testing.assert_close(batch.weights[0], 0.9 * before - 0.01 * update)


def test_cautious_decay_touches_only_what_the_update_shrinks_too():
    batch = make_batch()
    before, update = batch.weights[0].clone(), batch.direction[0].float()
    ones = torch.ones(5, dtype=torch.int32)
    weight_step(
        batch.blocks, batch.weights, batch.direction, batch.rate, batch.decay - 0.5, active_K=ones, decay="cautious"
    )
    factor = torch.where(update * before >= 0, 0.5, 1.0)
    torch.testing.assert_close(batch.weights[0], factor * before - 0.01 * update)
    assert 0 < (factor == 1).float().mean() < 1


def test_prox_is_the_minimiser_of_its_penalty():
    """argmin over W of |W - (W0 - lr D)|^2 / (2 lr) + decay |W|^2 / 2 is (W0 - lr D) / (1 + lr decay)."""
    batch = make_batch()
    before, update = batch.weights[0].clone(), batch.direction[0].float()
    rate, decay = torch.full((5,), 0.1), torch.full((5,), 1 / (1 + 0.1 * 2.0))
    weight_step(
        batch.blocks, batch.weights, batch.direction, rate, decay, active_K=torch.ones(5, dtype=torch.int32),
        decay="prox",
    )  # fmt: skip
    moved = batch.weights[0]
    slope = (moved - (before - 0.1 * update)) / 0.1 + 2.0 * moved
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-5)


def test_cautious_prox_shrinks_what_the_update_shrinks_and_only_that():
    batch = make_batch()
    before, update = batch.weights[0].clone(), batch.direction[0].float()
    rate, decay = torch.full((5,), 0.1), torch.full((5,), 0.8)
    active = torch.ones(5, dtype=torch.int32)
    weight_step(batch.blocks, batch.weights, batch.direction, rate, decay, active_K=active, decay="cautious_prox")
    moved, towards_zero = before - 0.1 * update, update * before >= 0
    torch.testing.assert_close(batch.weights[0], torch.where(towards_zero, 0.8 * moved, moved))
    assert 0 < towards_zero.float().mean() < 1


def test_inactive_blocks_and_rows_of_other_parts_stay():
    batch, before = make_batch(), make_batch()
    active = torch.tensor([0, 1, 0, 1, 1], dtype=torch.int32)
    weight_step(batch.blocks, batch.weights, batch.direction, batch.rate, batch.decay, active_K=active)
    assert torch.equal(batch.weights[0], before.weights[0])
    assert torch.equal(batch.weights[1][:8], before.weights[1][:8])
    assert torch.equal(batch.weights[2][0], before.weights[2][0])
    assert not torch.equal(batch.weights[2][1], before.weights[2][1])


@pytest.mark.parametrize("momentum", ["fp32", "bf16", "int8"])
def test_a_skipped_step_changes_nothing_even_with_nan(momentum):
    batch, before = make_batch(momentum=momentum, residual=True), make_batch(momentum=momentum, residual=True)
    for gradient in batch.gradients:
        gradient.fill_(float("nan"))
    _, active = momentum_step(batch.blocks, batch.gradients, batch.momentum, batch.scale, beta=0.9, found_inf=SKIP)
    weight_step(
        batch.blocks, batch.weights, batch.direction * float("nan"), batch.rate, batch.decay, active_K=active,
        residual_KMN=batch.residual, found_inf=SKIP,
    )  # fmt: skip
    for name in ("momentum", "scale", "residual"):
        a, b = getattr(batch, name), getattr(before, name)
        assert a is b is None or torch.equal(a, b), name
    assert all(torch.equal(a, b) for a, b in zip(batch.weights, before.weights, strict=True))


@pytest.mark.parametrize("momentum", ["bf16", "int8"])
def test_momentum_in_fewer_bits_stays_within_a_bound_over_many_steps(momentum):
    """The error of a step, half a unit, can at most pile up to 1 / (1 - beta) times itself."""
    small, exact = make_batch(momentum=momentum), make_batch()
    for _ in range(60):
        gradients = [draw(*g.shape, seed=_) for g in small.gradients]
        momentum_step(small.blocks, gradients, small.momentum, small.scale, beta=0.9)
        momentum_step(exact.blocks, gradients, exact.momentum, beta=0.9)
    kept = small.momentum.float() if small.scale is None else decode_int8(small.momentum, small.scale)
    unit = 2.0**-8 if small.scale is None else 1 / 254
    largest = 1.5 * float(exact.momentum.abs().max())
    assert (kept - exact.momentum).abs().max() <= 10 * unit * largest
    assert small.momentum.element_size() == {"bf16": 2, "int8": 1}[momentum]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"momentum_KMN": torch.zeros(5, 3, 3)}, "momentum is"),
        ({"momentum_KMN": torch.zeros(5, 12, 10, dtype=torch.int8)}, "momentum is"),
        ({"gradients": [torch.zeros(3, 3)] * 3}, "of the batch is"),
    ],
)
def test_momentum_that_does_not_fit_is_refused(change, message):
    batch = make_batch()
    arguments = {"blocks": batch.blocks, "gradients": batch.gradients, "momentum_KMN": batch.momentum, "beta": 0.9}
    with pytest.raises(ValueError, match=message):
        momentum_step(**arguments | change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"direction_KMN": torch.zeros(5, 3, 3)}, "direction is"),
        ({"scale": torch.zeros(5, 3, 1)}, "scale is"),
        ({"residual_KMN": torch.zeros(5, 3, 1, dtype=torch.int8)}, "residual is"),
    ],
)
def test_a_weight_step_that_does_not_fit_is_refused(change, message):
    batch = make_batch()
    arguments = {
        "blocks": batch.blocks, "weights": batch.weights, "direction_KMN": batch.direction, "rate_K": batch.rate,
        "decay_K": batch.decay, "active_K": torch.ones(5, dtype=torch.int32),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        weight_step(**arguments | change)


# ---- the kernels compile ---------------------------------------------------------------------------------------------

TABLE = ["*i64", "*i32", "*i64"]


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("momentum", ["*fp32", "*bf16", "*i8"])
def test_the_momentum_kernel_spills_nothing(momentum, capability):
    kernel = pytest.importorskip("sigma_kernels.matrix_step.kernel", exc_type=ImportError)
    import triton.language as tl

    scale = "*fp32" if momentum == "*i8" else None
    usage = compile_kernel(
        kernel._momentum_step_kernel,
        [*TABLE, momentum, scale, "*bf16", "*i32", "*fp32", "fp32", "i32:16"],
        capability=capability, num_warps=kernel.WARPS_WITH_CODES if scale else kernel.WARPS, GRAD=tl.float32, FORM=0,
        ALIGNED=True, TILE=kernel.TILE,
    )  # fmt: skip
    assert_lean(usage, MOST_REGISTERS)


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("residual", [None, "*i8"], ids=["fp32", "residual"])
def test_the_weight_kernel_spills_nothing(residual, capability):
    kernel = pytest.importorskip("sigma_kernels.matrix_step.kernel", exc_type=ImportError)
    import triton.language as tl

    usage = compile_kernel(
        kernel._weight_step_kernel,
        [*TABLE, residual, "*fp16", "*fp32", "*fp32", "*fp32", "*i32", "*fp32", "i32", "i32", "i32:16"],
        capability=capability, num_warps=kernel.WARPS_WITH_CODES if residual else kernel.WARPS, COLUMNS=896, SCALES=2,
        WEIGHT=tl.bfloat16 if residual else tl.float32, CAUTIOUS=True, PROX=False, ALIGNED=True, TILE=kernel.TILE,
    )  # fmt: skip
    assert_lean(usage, MOST_REGISTERS)


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
def test_the_table_of_addresses_compiles(capability):
    kernel = pytest.importorskip("sigma_kernels.matrix_step.kernel", exc_type=ImportError)
    compile_kernel(kernel._write_addresses_kernel, ["*i64", *["i64"] * 8], capability=capability, num_warps=1)
