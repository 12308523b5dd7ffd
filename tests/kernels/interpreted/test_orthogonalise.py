"""The symmetric products in Triton, interpreted, and the whole orthogonalisation through them."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.orthogonalise.kernel import TritonProducts, tile_of
from sigma_kernels.orthogonalise.op import orthogonalise
from tests.kernels.orthogonalise_cases import random_batch, relative
from tests.kernels.tolerance import assert_close

TRIPLE = (4.0, -2.8, 0.5)
SHAPES = [(1, 1, 1), (3, 5, 70), (2, 64, 64), (2, 70, 33), (1, 300, 65)]  # 300 rows take the large tiles


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
    tile = torch.arange(size) // tile_of(size, 90)["BLOCK"]
    blocks = tile[:, None] <= tile
    upper = torch.where(blocks, exact, 0)
    assert relative(torch.where(blocks, got.double(), 0), upper) < 1e-3
    below = tile[:, None] > tile
    assert torch.equal(got[:, below], got.mT[:, below])
    assert relative(got, exact) < 0.05


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
