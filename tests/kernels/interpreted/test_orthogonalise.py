"""The symmetric products in Triton, interpreted, and the whole orthogonalisation through them."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sigma_kernels import counters, dispatch, tuned
from sigma_kernels.orthogonalise.kernel import TritonProducts, tile_key, tile_of
from sigma_kernels.orthogonalise.normalise import normalised_wide_triton
from sigma_kernels.orthogonalise.op import orthogonalise
from sigma_kernels.orthogonalise.reference import TorchProducts
from sigma_kernels.orthogonalise.upper import upper_tile, upper_tiles
from tests.kernels.orthogonalise_cases import random_batch, relative
from tests.kernels.tolerance import assert_close

TRIPLE = (4.0, -2.8, 0.5)
# 300 rows take the large tiles; descriptors stand for rows of a multiple of 8 elements
SHAPES = [(1, 1, 1), (3, 5, 70), (2, 64, 64), (2, 70, 33), (1, 300, 65), (2, 72, 40), (1, 264, 72)]
SMALL = {"BLOCK": 16, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}


@triton.jit
def write_tiles(out_ptr, rows, BLOCK: tl.constexpr, RATIO: tl.constexpr):  # pyright: ignore[reportGeneralTypeIssues]
    k, i, j = upper_tile(tl.program_id(0), rows, BLOCK, RATIO)  # pyright: ignore[reportGeneralTypeIssues]
    out_ptr += 3 * tl.program_id(0)
    tl.store(out_ptr, k)
    tl.store(out_ptr + 1, i)
    tl.store(out_ptr + 2, j)


def half(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (random_batch(*shape) / shape[-1] ** 0.5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gram_matrix_is_exact_up_to_its_rounding_and_symmetric(shape, dtype):
    x = half(*shape, dtype=dtype)
    gram = TritonProducts().gram(x)
    assert_close("gram", gram, x.double() @ x.double().mT)
    assert torch.equal(gram, gram.mT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1, 33, 64, 300])
def test_the_quadratic_is_exact_up_to_its_rounding(size, dtype):
    gram = TritonProducts().gram(half(2, size, 40, dtype=dtype))
    a, b, c = TRIPLE
    r = gram.double()
    want = a * torch.eye(size, dtype=torch.float64) + b * r + c * (r @ r)
    assert_close("quadratic", TritonProducts().quadratic(gram, TRIPLE), want)


@pytest.mark.parametrize("size", [1, 33, 300])
def test_the_product_of_commuting_symmetric_matrices_is_its_upper_tiles_mirrored(size):
    r = half(1, size, 40, dtype=torch.float64)
    r = r @ r.mT
    left, right = (r @ r).half(), (0.5 * r + 0.1 * torch.eye(size, dtype=torch.float64)).half()
    got, exact = TritonProducts().symmetric(left, right), left.double() @ right.double()
    # rounded, the two do not commute exactly: the tiles from the diagonal up count
    tile = torch.arange(size) // tile_of(size, "sm_90")["BLOCK"]
    blocks = tile[:, None] <= tile
    upper = torch.where(blocks, exact, 0)
    assert relative(torch.where(blocks, got.double(), 0), upper) < 1e-3
    below = tile[:, None] > tile
    assert torch.equal(got[:, below], got.mT[:, below])
    assert relative(got, exact) < 0.05


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("rows", [8, 16, 24, 32, 40, 48, 72])
def test_tiles_of_descriptors_cover_the_triangle_whatever_its_size(rows, ratio):
    x = half(2, rows, 24, dtype=torch.float16)
    tile = SMALL | {"DESCRIPTORS": True, "RATIO": ratio}
    with tuned.using("orthogonalise", tile_key(rows, "sm_90"), {"tile": tile}):
        gram = TritonProducts().gram(x)
        got = TritonProducts().quadratic(gram, TRIPLE)
    assert counters.get("orthogonalise.by_descriptors") == 2
    assert_close("gram", gram, x.double() @ x.double().mT)
    a, b, c = TRIPLE
    r = gram.double()
    assert_close("quadratic", got, a * torch.eye(rows, dtype=torch.float64) + b * r + c * (r @ r))
    assert torch.equal(gram, gram.mT)


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("squares", range(1, 10))
def test_every_tile_from_the_diagonal_up_has_one_program(squares, ratio):
    rows, matrices, block = squares * 16 - 3, 2, 16
    programs = matrices * upper_tiles(rows, block, ratio)
    tiles = torch.empty(programs, 3, dtype=torch.int32)
    write_tiles[(programs,)](tiles, rows, BLOCK=block, RATIO=ratio)  # pyright: ignore[reportArgumentType]
    found = [(k, i, j) for k, i, j in tiles.tolist()]
    assert len(found) == len(set(found))
    covered = {(k, i, j + far) for k, i, j in found for far in range(ratio)}
    wanted = {(k, i, j) for k in range(matrices) for i in range(squares) for j in range(i, squares)}
    assert wanted <= covered
    assert ratio == 2 or wanted == covered


def test_matrices_that_descriptors_cannot_stand_for_go_by_pointers():
    wide = half(2, 72, 80, dtype=torch.float16)
    tile = SMALL | {"DESCRIPTORS": True, "RATIO": 1}
    with tuned.using("orthogonalise", tile_key(72, "sm_90"), {"tile": tile}):
        for x in (wide[:, :, :76], wide[:, :, 4:], wide[:, :, 1:73]):
            kept = x.contiguous()
            assert relative(TritonProducts().gram(x), TritonProducts().gram(kept)) < 1e-3
    assert counters.get("orthogonalise.by_descriptors") == 1 + 1 + 0
    assert counters.get("orthogonalise.by_pointers") == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 300), (2, 70, 33), (1, 64, 64), (3, 1, 7), (2, 130, 2)], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns", "every second"])
def test_division_by_the_norm_equals_the_reference_whatever_the_layout(layout, shape, dtype):
    x = random_batch(*shape).to(dtype) * 30
    x[0] *= 1e-4
    if layout == "columns":
        x = x.mT.contiguous().mT
    elif layout == "every second":
        x = torch.stack([x, -x], dim=-1)[..., 0]
    got = normalised_wide_triton(x, torch.float16)
    want = TorchProducts().normalised_wide(x, torch.float16)
    assert got.is_contiguous()
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-7)


def test_division_by_the_norm_keeps_zero_matrices_zero():
    x = random_batch(3, 20, 10)
    x[1] = 0
    got = normalised_wide_triton(x, torch.float16)
    assert not bool(got[1].any())
    assert torch.equal(got[::2], normalised_wide_triton(x[::2], torch.float16))


def test_rows_of_a_wider_tensor_are_read_in_place():
    wide = half(2, 80, 70, dtype=torch.bfloat16)
    part = wide[:, 10:50, 3:60]
    assert torch.equal(TritonProducts().gram(part), TritonProducts().gram(part.contiguous()))


@pytest.mark.parametrize("form", ["direct", "gram"])
@pytest.mark.parametrize("shape", [(2, 20, 50), (2, 50, 20), (1, 33, 33)], ids=str)
def test_the_orthogonalisation_equals_the_one_by_the_reference(shape, form):
    x = random_batch(*shape)
    got = orthogonalise(x, form=form)
    dispatch.set_backend("reference")
    want = orthogonalise(x, form=form)
    assert relative(got, want) < 0.02
    assert counters.get("orthogonalise.use_triton") == 1
