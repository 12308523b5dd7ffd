"""The Triton cross-entropy, interpreted: values, gradients, edges of the vocabulary, what is not finite."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters
from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.cross_entropy.reference import cross_entropy_reference
from sigma_kernels.row_tiles import FLOATS
from tests.kernels.cross_entropy_cases import assert_right, make_inputs, run

BLOCK = 64
# One word, less than a block, a whole one, several, several and a bit.
SHAPES = [(1,), (5, 1), (4, 7), (3, 2, 64), (5, 128), (6, 300)]

pytestmark = [
    pytest.mark.usefixtures("every_access_lies_in_a_tensor", "_small_blocks"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),  # numpy's, which interprets
]


@pytest.fixture
def _small_blocks(monkeypatch):
    """So that a small vocabulary takes several."""
    from sigma_kernels.cross_entropy import kernel

    monkeypatch.setitem(kernel.TILE, "BLOCK_V", BLOCK)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_match_the_float64_formula(shape, dtype):
    assert_right(make_inputs(shape, dtype))


@pytest.mark.parametrize("offset", [-1e5, -300.0, 300.0, 1e5])
def test_logits_far_from_zero_are_as_exact_as_others(offset):
    logits, labels, dnats = make_inputs((6, 300), torch.float32)
    assert_right((logits + offset, labels, dnats))


@pytest.mark.parametrize("offset", [0.0, 100.0, 3e38])
def test_the_loss_of_a_row_that_is_sure_is_small_and_never_negative(offset):
    logits = torch.full((2, 300), -20.0)
    logits[:, 7] = 0.0
    labels = torch.tensor([7, 8])
    got, want = cross_entropy(logits + offset, labels), cross_entropy_reference(logits + offset, labels)
    assert (got >= 0).all()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def test_labels_with_strides_are_read_where_they_are():
    logits, labels, dnats = make_inputs((3, 4, 70), torch.float32)
    strided = torch.nn.functional.pad(labels, (1, 0))[:, 1:]
    assert not strided.is_contiguous()
    got, want = run(logits, strided, dnats), run(logits, labels, dnats)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_logits_are_kept_as_they_came_in_and_two_numbers_a_row():
    logits, labels, _ = make_inputs((6, 300), torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cross_entropy(logits.requires_grad_(), labels)
    assert sum(t.nbytes for t in kept) == logits.nbytes + labels.nbytes + 2 * 4 * labels.numel()
    assert logits.untyped_storage().data_ptr() in {t.untyped_storage().data_ptr() for t in kept}


def test_an_ignored_label_costs_nothing_and_sends_nothing_whatever_its_logits_are():
    logits, labels, dnats = make_inputs((4, 300), torch.bfloat16)
    logits[2, 100] = float("nan")
    assert labels[2] == -100
    results = run(logits, labels, dnats)
    assert results["nats"][2] == 0
    assert not results["dlogits"][2].any()
    assert results["dlogits"].isfinite().all()


@pytest.mark.parametrize("label", [-1, -101, 300, 10**12])
def test_a_label_outside_the_vocabulary_is_nan(label):
    logits, labels, _ = make_inputs((4, 300), torch.float32)
    labels[1] = label
    results = run(logits, labels, torch.ones(4))
    assert results["nats"].isnan().tolist() == [False, True, False, False]
    assert results["dlogits"].isnan().any(1).tolist() == [False, True, False, False]


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
