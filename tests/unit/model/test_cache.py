from __future__ import annotations

import pytest
import torch

from sigma.model.cache import LatentLayer, RecurrentLayer, SigmaCache


@pytest.fixture
def filled(tiny_model, random_ids, ratio):
    """A cache after two rows of five tokens, and the model that made it."""
    model = tiny_model(**ratio)
    with torch.no_grad():
        return model, model(random_ids(2, 5), use_cache=True).past_key_values


def tensors(cache):
    for layer in cache.layers:
        held = layer.state if isinstance(layer, RecurrentLayer) else layer
        yield from (value for value in vars(held).values() if isinstance(value, torch.Tensor))


def test_the_length_is_known_whatever_the_first_layer_is(filled):
    model, cache = filled
    assert cache.get_seq_length() == 5
    assert cache.get_mask_sizes(3, 0) == (8, 0)
    assert [layer.get_seq_length() for layer in cache.layers] == [5] * model.config.num_hidden_layers


def test_every_layer_has_the_cache_of_its_kind(tiny_config, ratio):
    config = tiny_config(**ratio)
    kinds = {"full_attention": LatentLayer, "linear_attention": RecurrentLayer}
    assert [type(layer) for layer in SigmaCache(config).layers] == [kinds[kind] for kind in config.layer_types]


@pytest.mark.parametrize("rope_dim", [0, 6], ids=["NoPE", "rotary key"])
@torch.no_grad()
def test_attention_caches_only_the_latent_and_the_rotary_key(tiny_model, random_ids, rope_dim):
    model = tiny_model(mamba_ratio=0, num_hidden_layers=2, rope_dim=rope_dim)
    size = lambda length: sum(  # noqa: E731
        t.numel() for t in tensors(model(random_ids(3, length), use_cache=True).past_key_values)
    )
    assert size(9) - size(8) == 3 * 2 * (10 + rope_dim)


@torch.no_grad()
def test_the_recurrent_state_does_not_grow(tiny_model, random_ids):
    model = tiny_model(attention_ratio=0)
    sizes = [
        sum(t.numel() for t in tensors(model(random_ids(2, length), use_cache=True).past_key_values))
        for length in (2, 13)
    ]
    assert sizes[0] == sizes[1]


@torch.no_grad()
def next_logits(model, cache, rows):
    return model(torch.full((rows, 1), 7), past_key_values=cache, use_cache=True).logits


@pytest.mark.parametrize(
    "change, rows",
    [
        (lambda cache: cache.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([True, False])), [0]),
    ],
    ids=["reorder", "repeat", "select", "select by mask"],
)
def test_rows_can_be_moved(tiny_model, random_ids, ratio, change, rows):
    """The next step of a moved row is that of its origin."""
    model, ids = tiny_model(**ratio), random_ids(2, 5)
    with torch.no_grad():
        untouched, moved = (model(ids, use_cache=True).past_key_values for _ in range(2))
    change(moved)
    expected = next_logits(model, untouched, 2)[rows]
    torch.testing.assert_close(next_logits(model, moved, len(rows)), expected, atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[-1]).abs().max() > 1e-4 or rows[0] == rows[-1]


def test_reset_forgets_everything(filled, random_ids):
    model, cache = filled
    cache.reset()
    assert cache.get_seq_length() == 0
    ids = random_ids(1, 6, seed=8)
    with torch.no_grad():
        again = model(ids, past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(again, model(ids, use_cache=False).logits, atol=1e-5, rtol=1e-5)


def test_a_recurrent_state_refuses_to_be_cropped(tiny_model, random_ids):
    with torch.no_grad():
        cache = tiny_model()(random_ids(1, 5), use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="cannot be rolled back"):
        cache.crop(-2)
    assert not cache.is_croppable


def test_attention_alone_can_be_cropped(tiny_model, random_ids):
    model, ids = tiny_model(mamba_ratio=0), random_ids(1, 6)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.crop(-2)
        rest = model(ids[:, 4:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(rest, model(ids).logits[:, 4:], atol=1e-5, rtol=1e-5)


def test_a_recurrent_layer_has_no_keys():
    with pytest.raises(NotImplementedError, match=r"store\(\)"):
        RecurrentLayer().update(torch.zeros(1), torch.zeros(1))
