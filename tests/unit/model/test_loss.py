"""The loss against the one of transformers that it stands for."""

from __future__ import annotations

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from sigma.model.loss import causal_lm_loss

VOCABULARY = 11


@pytest.fixture
def logits():
    return torch.randn(2, 5, VOCABULARY, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def labels():
    labels = torch.randint(VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 3] = labels[1, 0] = -100
    return labels


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)], ids=str)
@pytest.mark.parametrize("shifted", [False, True], ids=["labels", "shift_labels"])
def test_loss_and_gradient_are_those_of_transformers(logits, labels, shifted, items):
    given = {"labels": None if shifted else labels, "shift_labels": labels if shifted else None}
    results = []
    for loss in (causal_lm_loss, ForCausalLMLoss):
        value = loss(logits, vocab_size=VOCABULARY, num_items_in_batch=items, **given)
        results.append((value, *torch.autograd.grad(value, logits)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_another_index_is_ignored_as_transformers_does(logits, labels):
    labels[labels == -100] = 3
    given = {"vocab_size": VOCABULARY, "ignore_index": 3, "labels": labels}
    torch.testing.assert_close(causal_lm_loss(logits, **given), ForCausalLMLoss(logits, **given))


def test_flat_labels_of_logits_with_strides_are_taken(logits, labels):
    part, flat = logits.bfloat16()[:, 1:], labels[:, 1:].flatten()
    want = ForCausalLMLoss(part, None, VOCABULARY, shift_labels=flat)
    torch.testing.assert_close(causal_lm_loss(part, None, VOCABULARY, shift_labels=flat), want)


def test_no_labels_at_all_are_an_error(logits):
    with pytest.raises(ValueError, match="needs labels"):
        causal_lm_loss(logits, None, VOCABULARY)


def test_without_labels_there_is_no_mean(logits, labels):
    assert causal_lm_loss(logits, torch.full_like(labels, -100), VOCABULARY).isnan()


def test_logits_in_bf16_give_a_loss_in_fp32(logits, labels):
    value = causal_lm_loss(logits.bfloat16(), labels, VOCABULARY)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, causal_lm_loss(logits, labels, VOCABULARY), rtol=1e-2, atol=0)
