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


def test_without_labels_there_is_no_mean(logits, labels):
    assert causal_lm_loss(logits, torch.full_like(labels, -100), VOCABULARY).isnan()


def test_logits_in_bf16_give_a_loss_in_fp32(logits, labels):
    value = causal_lm_loss(logits.bfloat16(), labels, VOCABULARY)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, causal_lm_loss(logits, labels, VOCABULARY), rtol=1e-2, atol=0)
