from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from sigma.model.cache import SigmaCache
from sigma.model.modeling import SigmaForCausalLM

NEW = 6


@pytest.fixture
def left_padded(random_ids):
    """Two prompts of 3 and 7 tokens in one batch, padded on the left, and their mask."""
    ids = random_ids(2, 7)
    ids[0, :4] = 0
    return ids, (ids != 0).long()


def greedy_without_cache(model, ids, steps):
    """The specification: the whole sequence again for every token."""
    for _ in range(steps):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.parametrize("mode", ["none", "bitnet_1_58"], ids=["plain", "ternary"])
@pytest.mark.parametrize("rope_dim", [0, 6], ids=["NoPE", "rotary key"])
@torch.no_grad()
def test_a_left_padded_batch_generates_what_each_prompt_alone_gives(tiny_model, left_padded, ratio, mode, rope_dim):
    model, (ids, mask) = tiny_model(quant_mode=mode, rope_dim=rope_dim, **ratio), left_padded
    made = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    for row in range(2):
        alone = greedy_without_cache(model, ids[row : row + 1, mask[row].bool()], NEW)
        assert made[row, 7:].tolist() == alone[0, -NEW:].tolist()


@torch.no_grad()
def test_the_cache_changes_no_generated_logit(tiny_model, left_padded, ratio):
    model, (ids, mask) = tiny_model(**ratio), left_padded
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "output_logits": True}
    cached, uncached = (
        model.generate(ids, attention_mask=mask, use_cache=use, return_dict_in_generate=True, **options)
        for use in (True, False)
    )
    assert isinstance(cached.past_key_values, SigmaCache)
    assert cached.past_key_values.get_seq_length() == 7 + NEW - 1
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_beam_search_finds_the_same_with_and_without_cache(tiny_model, left_padded, ratio):
    model, (ids, mask) = tiny_model(**ratio), left_padded
    beams = [
        model.generate(ids, attention_mask=mask, max_new_tokens=NEW, num_beams=3, use_cache=use, eos_token_id=None)
        for use in (True, False)
    ]
    assert torch.equal(beams[0], beams[1])


@torch.no_grad()
def test_sampling_draws_the_same_with_and_without_cache(tiny_model, left_padded):
    model, (ids, mask) = tiny_model(), left_padded
    draws = []
    for use in (True, False):
        torch.manual_seed(0)
        options = {"max_new_tokens": NEW, "num_return_sequences": 2, "use_cache": use, "eos_token_id": None}
        draws.append(model.generate(ids, attention_mask=mask, do_sample=True, temperature=0.8, **options))
    assert torch.equal(draws[0], draws[1])
    assert draws[0].shape == (4, 7 + NEW)


@torch.no_grad()
def test_generation_continues_from_a_given_cache(tiny_model, random_ids, ratio):
    model, ids = tiny_model(**ratio), random_ids(1, 8)
    cache = model(ids[:, :5], use_cache=True).past_key_values
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    continued = model.generate(ids, past_key_values=cache, **options)
    assert torch.equal(continued, model.generate(ids, **options))


@torch.no_grad()
def test_ids_beyond_the_tokenizer_are_never_generated(tiny_config, random_ids):
    model = SigmaForCausalLM(tiny_config(tokenizer_vocab_size=50)).eval()
    torch.manual_seed(0)
    made = model.generate(random_ids(8, 2, vocab=50), do_sample=True, max_new_tokens=16, temperature=5.0, top_k=0)
    assert made.max() < 50
    assert made.unique().numel() > 20, "the test must be able to hit them"


def test_a_model_with_a_state_refuses_assisted_decoding(tiny_model, random_ids):
    model = tiny_model()
    with pytest.raises(ValueError, match="stateful"):
        model.generate(
            random_ids(1, 4), generation_config=GenerationConfig(prompt_lookup_num_tokens=2, max_new_tokens=4)
        )
