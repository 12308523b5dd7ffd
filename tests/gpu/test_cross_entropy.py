"""The Triton cross-entropy on a GPU: values, gradients, vocabularies of every size, offsets beyond 2^31."""

from __future__ import annotations

import math

import pytest
import torch

from sigma_kernels import counters
from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.row_tiles import FLOATS
from tests.kernels.cross_entropy_cases import assert_right, make_inputs, run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_backend")]

SHAPES = [(1, 1), (5, 123), (3, 7, 8192), (257, 8193), (64, 50304), (33, 128256)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_match_the_float64_formula(shape, dtype):
    assert_right(make_inputs(shape, dtype, device="cuda"))


def test_what_is_not_finite_is_told():
    logits, labels, _ = make_inputs((5, 20000), torch.bfloat16, device="cuda")
    labels.fill_(5)
    labels[4] = 20000
    logits[0, 15000] = float("nan")
    logits[1, 15000] = float("inf")
    logits[2, :8192] = -float("inf")
    nats = cross_entropy(logits, labels).tolist()
    assert [nats[0] != nats[0], nats[1] != nats[1], nats[2], nats[4] != nats[4]] == [True, True, float("inf"), True]
    assert 0 < nats[3] < float("inf")


def test_elements_beyond_two_to_the_31st_are_reached():
    """Offsets in 32 bits would wrap here."""
    logits = torch.zeros(2**31 // 65536 + 1, 65536, dtype=torch.bfloat16, device="cuda")
    labels = torch.zeros(len(logits), dtype=torch.int64, device="cuda")
    logits[-1, 0] = 100.0
    labels[-1] = 1
    nats = cross_entropy(logits.requires_grad_(), labels)
    torch.testing.assert_close(nats[[0, -1]].detach().cpu(), torch.tensor([math.log(65536), 100.0]))
    (dlogits,) = torch.autograd.grad(nats.sum(), logits)
    assert dlogits[-1, :3].tolist() == [1.0, -1.0, 0.0]


def test_two_runs_give_the_same_bits():
    inputs = make_inputs((1000, 50304), torch.bfloat16, device="cuda")
    first, again = run(*inputs), run(*inputs)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_kernel_ran_and_not_the_reference():
    before = counters.get("cross_entropy.use_triton"), counters.get("cross_entropy.backward")
    run(*make_inputs((5, 123), torch.bfloat16, device="cuda"))
    after = counters.get("cross_entropy.use_triton"), counters.get("cross_entropy.backward")
    assert after == (before[0] + 1, before[1] + 1)
