"""The orthogonalisation brings singular values near 1 as its polynomials say, in every form, and compiles."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters
from sigma_kernels.architecture import architecture_of
from sigma_kernels.orthogonalise import op
from sigma_kernels.orthogonalise.op import CHUNK, orthogonalise, orthogonalise_with_transform
from sigma_kernels.orthogonalise.reference import TorchProducts, direct_form, gram_form, normalised, polynomials
from tests.kernels.compile_only import EVERY_CAPABILITY, compile_kernel
from tests.kernels.orthogonalise_cases import polar, random_batch, relative, with_spectrum

CONSUMER_SHARED_MEMORY = 99 * 1024
SHAPES = [(3, 40, 60), (2, 24, 100), (2, 100, 24)]


def singular_values(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(x.double())


def composed(values: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """What the polynomials make of singular values."""
    s = values.double()
    for a, b, c in polynomials(iterations):
        s = a * s + b * s**3 + c * s**5
    return s


def test_the_polynomials_bring_a_thousandth_to_one_near_one():
    values = composed(torch.logspace(-3, 0, 400))
    assert values.min() > 0.85
    assert values.max() < 1.15
    assert composed(torch.tensor([1e-2, 1.0])).tolist() == pytest.approx([1.03, 0.86], abs=0.01)


@pytest.mark.parametrize("polynomial", ["polar_express", "newton_schulz"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_matrices_come_near_their_polar_factor(shape, polynomial):
    x = random_batch(*shape)
    out = orthogonalise(x, polynomial=polynomial)
    assert out.shape == x.shape
    values = singular_values(out)
    bound = {"polar_express": (0.8, 1.2), "newton_schulz": (0.5, 1.3)}[polynomial]
    assert bound[0] < values.min()
    assert values.max() < bound[1]
    assert relative(out, polar(x)) < {"polar_express": 0.15, "newton_schulz": 0.25}[polynomial]


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_a_spectrum_of_six_decades_becomes_what_the_polynomials_say(form):
    spectrum = torch.logspace(-6, 0, 24)
    x = with_spectrum(spectrum, 24, 60)
    norm = spectrum.norm() * 1.02
    want = composed(spectrum / norm).sort().values
    run = direct_form if form == "direct" else gram_form
    got = run(normalised(x, torch.float32), polynomials(5), TorchProducts()).polar_KMN
    torch.testing.assert_close(singular_values(got)[0].sort().values, want, rtol=5e-3, atol=5e-3)


def test_forms_agree_in_fp32_and_half_precision_stays_close():
    x = random_batch(2, 32, 80)
    exact = direct_form(normalised(x, torch.float32), polynomials(5), TorchProducts()).polar_KMN
    gram = gram_form(normalised(x, torch.float32), polynomials(5), TorchProducts()).polar_KMN
    half = gram_form(normalised(x, torch.float16), polynomials(5), TorchProducts()).polar_KMN
    assert relative(gram, exact) < 1e-5
    assert relative(half, exact) < 0.01
    assert relative(orthogonalise(x), exact) < 0.03  # bf16


def test_a_rank_deficient_matrix_gets_the_polar_factor_of_its_range():
    x = with_spectrum(torch.tensor([1.0, 0.7, 0.5]), 12, 20)
    out = orthogonalise(x, form="gram")
    assert relative(out, polar(x)) < 0.2
    assert singular_values(out)[0, 3:].max() < 1e-2


def test_in_half_precision_the_range_stays_and_rounding_fills_the_rest_up_to_size_one():
    x = with_spectrum(torch.tensor([1.0, 0.7, 0.5]), 12, 20)
    u, _, vh = torch.linalg.svd(x[0], full_matrices=False)
    out = orthogonalise(x, form="direct")[0].float()
    torch.testing.assert_close(u[:, :3].T @ out @ vh[:3].T, torch.eye(3), rtol=0, atol=0.2)
    assert singular_values(out).max() < 1.3


@pytest.mark.parametrize("polynomial", ["polar_express", "newton_schulz"])
def test_a_zero_matrix_stays_zero_and_disturbs_no_other(polynomial):
    x = random_batch(2, 6, 9)
    alone = orthogonalise(x[1:], polynomial=polynomial)
    x[0] = 0
    out = orthogonalise(x, polynomial=polynomial)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    torch.testing.assert_close(out[1], alone[0], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("shape", [(2, 1, 7), (2, 7, 1), (1, 1, 1)], ids=str)
def test_a_row_or_a_column_becomes_a_unit_vector(shape):
    x = random_batch(*shape)
    torch.testing.assert_close(orthogonalise(x).float().flatten(1).norm(dim=1), torch.ones(shape[0]), rtol=0.15, atol=0)


@pytest.mark.parametrize("form", ["direct", "gram"])
def test_a_batch_is_its_matrices_and_tall_is_wide_turned(form):
    x = random_batch(3, 20, 44)
    out = orthogonalise(x, form=form)
    torch.testing.assert_close(out, torch.cat([orthogonalise(m[None], form=form) for m in x]), rtol=0, atol=0.02)
    torch.testing.assert_close(orthogonalise(x.mT, form=form), out.mT, rtol=0, atol=0.02)


def test_the_scale_of_the_input_does_not_matter():
    x = random_batch(1, 20, 30)
    for scale in (2.0**-12, 2.0**20):
        torch.testing.assert_close(
            orthogonalise(x * scale, form="gram"), orthogonalise(x, form="gram"), rtol=0, atol=1e-3
        )


def test_rotations_of_rows_and_columns_rotate_the_result():
    x = random_batch(1, 16, 24)
    left, right = (torch.linalg.qr(random_batch(n, n, seed=n))[0] for n in (16, 24))
    turned = orthogonalise(left @ x @ right, form="gram").float()
    torch.testing.assert_close(turned, left @ orthogonalise(x, form="gram").float() @ right, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 12, 30), (2, 30, 12)], ids=str)
def test_the_transform_makes_the_polar_factor_of_the_matrix_it_came_from(shape):
    x = random_batch(*shape)
    out, transform = orthogonalise_with_transform(x)
    assert transform.shape == (2, 12, 12)
    made = transform @ x if shape[1] < shape[2] else x @ transform
    cosine = (made * out).sum(dim=(1, 2)) / made.norm(dim=(1, 2)) / out.norm(dim=(1, 2))
    torch.testing.assert_close(cosine, torch.ones(2), rtol=0, atol=1e-5)


def test_more_iterations_come_closer():
    x = random_batch(1, 30, 30)
    distance = [relative(orthogonalise(x, iterations=n, form="gram"), polar(x)) for n in (1, 3, 5)]
    assert distance == sorted(distance, reverse=True)


def test_large_batches_are_worked_on_in_parts(monkeypatch):
    x = random_batch(5, 8, 9)
    whole = orthogonalise(x)
    monkeypatch.setattr("sigma_kernels.orthogonalise.op.CHUNK", 2 * 8 * 9)
    torch.testing.assert_close(orthogonalise(x), whole, rtol=0, atol=0.02)
    assert counters.get("orthogonalise.matrices") == 10
    assert counters.get("orthogonalise.use_reference") == 1 + 3
    assert CHUNK > 1 << 20


@pytest.mark.parametrize("shape, iterations", [((3, 4), 5), ((0, 3, 4), 5), ((1, 3, 4), 0)], ids=str)
def test_what_is_no_batch_or_no_iteration_is_refused(shape, iterations):
    with pytest.raises(ValueError, match="must be"):
        orthogonalise(torch.zeros(shape), iterations=iterations)


@pytest.mark.parametrize("chunk, parts", [(42, [7]), (24, [4, 3]), (18, [3, 2, 2]), (10, [1] * 7), (5, [1] * 7)])
def test_parts_of_a_large_batch_have_nearly_the_same_size(chunk, parts, monkeypatch):
    monkeypatch.setattr("sigma_kernels.orthogonalise.op.CHUNK", chunk)
    assert [len(part) for part in op._chunks(torch.zeros(7, 2, 3))] == parts


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("even", [False, True], ids=["any size", "whole tiles"])
@pytest.mark.parametrize("rows", [128, 1024])
@pytest.mark.parametrize("quadratic", [False, True], ids=["gram", "quadratic"])
def test_products_by_pointers_fit_a_consumer_gpu_and_spill_nothing(quadratic, rows, even, capability):
    pytest.importorskip("triton")
    from sigma_kernels.orthogonalise.kernel import tile_by_pointers
    from sigma_kernels.orthogonalise.pointers import product_by_pointers

    types: list[str | None] = ["*fp16", "*fp16", "*fp16", *["i32:16"] * 7, "fp32", "fp32", "fp32"]
    tile = tile_by_pointers(rows, architecture_of(capability))
    assert not tile.pop("DESCRIPTORS")
    options = {"num_stages": tile.pop("num_stages")}
    usage = compile_kernel(
        product_by_pointers, types, capability=capability, options=options, QUADRATIC=quadratic, EVEN=even, **tile
    )
    assert usage.spilled_bytes == 0
    limit = CONSUMER_SHARED_MEMORY if capability not in (90, 100) else 200 * 1024
    assert usage.shared_bytes <= limit


SMALL = {"BLOCK": 64, "RATIO": 1, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
LARGE = {"BLOCK": 128, "RATIO": 1, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}


@pytest.mark.parametrize(
    "tile, programs",
    [(None, 2), (SMALL, 2), (LARGE, 2), (LARGE | {"RATIO": 2}, 1)],
    ids=["built in", "small", "large", "wide"],
)
@pytest.mark.parametrize("quadratic", [False, True], ids=["gram", "quadratic"])
def test_products_by_descriptors_leave_registers_and_memory_for_other_programs(quadratic, tile, programs):
    pytest.importorskip("triton")
    from sigma_kernels.orthogonalise.descriptors import product_by_descriptors
    from sigma_kernels.orthogonalise.kernel import built_in_tile

    tile = dict(tile or built_in_tile(1024, "sm_90"))
    assert tile.pop("DESCRIPTORS", True)
    block, inner = tile["BLOCK"], tile["BLOCK_K"]
    square = f"tensordesc<fp16[1,{block},{block}]>"
    left, right = (f"tensordesc<fp16[1,{rows},{inner}]>" for rows in (block, block * tile["RATIO"]))
    types: list[str | None] = [left, right, square, square, "i32:16", "i32:16", "fp32", "fp32", "fp32"]
    options = {"num_stages": tile.pop("num_stages")}
    usage = compile_kernel(product_by_descriptors, types, capability=90, options=options, QUADRATIC=quadratic, **tile)
    assert usage.spilled_bytes == 0
    assert not usage.waiting
    assert programs * usage.registers * 32 * tile["num_warps"] <= 64 * 1024
    assert programs * (usage.shared_bytes + 1024) <= 228 * 1024
