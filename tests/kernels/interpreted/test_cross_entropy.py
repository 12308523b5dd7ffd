"""The Triton cross-entropy, interpreted: values, gradients, edges of the vocabulary, what is not finite."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters
from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.cross_entropy.reference import cross_entropy_reference
from tests.kernels.cross_entropy_cases import DTYPES, assert_right, exact, make_inputs, run

BLOCK = 64
# One word, less than a block, a whole one, several, several and a bit.
SHAPES = [(1,), (5, 1), (4, 7), (3, 2, 64), (5, 128), (6, 300)]

pytestmark = pytest.mark.usefixtures("every_access_lies_in_a_tensor", "_small_blocks")


@pytest.fixture
def _small_blocks(monkeypatch):
    """So that a small vocabulary takes several."""
    from sigma_kernels.cross_entropy import kernel

    monkeypatch.setitem(kernel.TILE, "BLOCK_V", BLOCK)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_match_the_float64_formula(shape, dtype):
    assert_right(make_inputs(shape, dtype))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's, which interprets
@pytest.mark.parametrize("offset", [-3e4, 3e4])
def test_logits_far_from_zero_neither_overflow_nor_vanish(offset):
    logits, labels, dnats = make_inputs((6, 300), torch.float32)
    got, want = run(logits + offset, labels, dnats), exact(logits + offset, labels, dnats)
    torch.testing.assert_close(got["nats"].double(), want["nats"], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(got["dlogits"].double(), want["dlogits"], rtol=1e-2, atol=1e-6)


def test_an_ignored_label_costs_nothing_and_sends_nothing_whatever_its_logits_are():
    logits, labels, dnats = make_inputs((4, 300), torch.bfloat16)
    logits[2, 100] = float("nan")
    assert labels[2] == -100
    results = run(logits, labels, dnats)
    assert results["nats"][2] == 0
    assert not results["dlogits"][2].any()
    assert results["dlogits"].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, which interprets
@pytest.mark.parametrize("label", [-1, -101, 300, 10**12])
def test_a_label_outside_the_vocabulary_is_nan(label):
    logits, labels, _ = make_inputs((4, 300), torch.float32)
    labels[1] = label
    assert cross_entropy(logits, labels).isnan().tolist() == [False, True, False, False]


@pytest.mark.filterwarnings(
    "ignore:invalid value", "ignore:divide by zero", "ignore:All-NaN"
)  # numpy's, which interprets
def test_what_is_not_finite_is_what_the_reference_makes_of_it():
    logits, _, _ = make_inputs((6, 300), torch.float32)
    labels = torch.full((6,), 5)
    logits[0, 200] = float("nan")
    logits[1, 200] = float("inf")
    logits[2] = -float("inf")
    logits[3, :BLOCK] = -float("inf")  # a first block without a finite maximum
    logits[4, 5] = -float("inf")
    logits[5] = float("nan")
    got, want = cross_entropy(logits, labels), cross_entropy_reference(logits, labels)
    assert want[3] == want[4] == float("inf")
    assert want.isnan().tolist() == [True, True, True, False, False, True]
    torch.testing.assert_close(got, want, equal_nan=True)


def test_parts_of_wider_logits_and_one_gradient_for_all_are_read_in_place():
    logits, labels, _ = make_inputs((5, 300), torch.bfloat16)
    wide = torch.full((5, 400), float("nan"), dtype=torch.bfloat16)
    wide[:, 50:350] = logits
    one = torch.ones(()).expand(5)
    want = run(logits, labels, one.contiguous())
    for given in (wide[:, 50:350], logits.T.contiguous().T):
        got = run(given, labels, one)
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_no_rows_have_no_loss():
    results = run(torch.zeros(2, 0, 8), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0))
    assert (results["nats"].shape, results["dlogits"].shape) == ((2, 0), (2, 0, 8))


def test_a_step_counts_its_kernels():
    run(*make_inputs((4, 7), torch.float32))
    counts = {"cross_entropy.backward": 1, "cross_entropy.forward": 1, "cross_entropy.use_triton": 1}
    assert counters.snapshot() == counts
