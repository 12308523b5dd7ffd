"""What decoding keeps of the past: a latent per token for attention, a state of fixed size for Mamba-3.

The layers follow the cache interface of transformers 5 (`CacheLayerMixin`), so `generate()` finds its length, beam
search reorders it, and it can be repeated and selected along the batch. Every layer counts the tokens that it has seen:
the stock `Cache.get_seq_length()` asks layer 0, and a stack may have no attention layer at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from sigma.model.configuration import SigmaConfig
from sigma_kernels.scan.op import Mamba3State


class LatentLayer(DynamicLayer):
    """Cache of a multi-head latent attention layer (DeepSeek-V2, arXiv 2405.04434).

    `keys` holds the key/value latent `[B, 1, T, L]` and `values` the rotary key shared by all heads `[B, 1, T, r]`
    (r = 0 with NoPE): L + r numbers per token, whatever the number of heads.
    """

    def append(self, latent_BTL: Tensor, rope_key_BTr: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens; return the latents and rotary keys of all tokens so far."""
        latent, rope_key = self.update(latent_BTL[:, None], rope_key_BTr[:, None])
        return latent[:, 0], rope_key[:, 0]

    def reset(self) -> None:
        """Forget everything. (The base class of some transformers versions keeps the length and zeroes the content.)"""
        self.keys = self.values = None
        self.is_initialized = False


class RecurrentLayer(CacheLayerMixin):
    """Cache of a Mamba-3 layer: `state` (phase int32, state fp32, last key, last x), None before the first token."""

    is_croppable = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: Mamba3State | None = None
        self.tokens_seen = 0

    def store(self, state: Mamba3State, tokens: int) -> None:
        """Keep `state`, without gradient, which is the state after `tokens` more tokens."""
        self.state = state
        self._map(Tensor.detach)
        self.tokens_seen += tokens
        self.is_initialized = True

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.state = Mamba3State(**{f.name: change(getattr(self.state, f.name)) for f in fields(Mamba3State)})

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate: the scan makes the first state."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raise: a recurrent layer has no keys and values, its mixer calls `store`."""
        raise NotImplementedError("a recurrent cache layer holds no keys and values; its mixer calls store()")

    def get_seq_length(self) -> int:
        """Tokens seen so far."""
        return self.tokens_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask over the past and the query, as for an attention layer."""
        return self.tokens_seen + query_length, 0

    def get_max_length(self) -> int:
        """-1: the state has a fixed size, so there is no longest sequence."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.tokens_seen, self.is_initialized = None, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i continue from the former row `beam_idx[i]`."""
        self._map(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        self._map(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` (positions or a boolean mask)."""
        self._map(lambda t: t[indices.to(t.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Raise unless nothing is removed: a recurrence cannot be run backwards."""
        if tokens_to_remove != 0:
            raise RuntimeError(
                "a recurrent state cannot be rolled back: decode again from the start, or copy the cache first"
            )


class SigmaCache(Cache):
    """The cache of a whole SIGMA stack: one `LatentLayer` or `RecurrentLayer` per layer of `config.layer_types`."""

    def __init__(self, config: SigmaConfig) -> None:
        kinds = {"full_attention": LatentLayer, "linear_attention": RecurrentLayer}
        super().__init__(layers=[kinds[layer_type]() for layer_type in config.layer_types])
