"""SigmaForCausalLM: the hybrid stack as a transformers model.

Nothing stands between the final norm and the head: `model.model(ids).last_hidden_state @ lm_head.weight.T` are the
logits, so that fused losses of other libraries compute the same. The class names avoid the one word that makes
`generate()` hand over the cache under another name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from sigma.memory.instant import patch, require_patched
from sigma.model.bitlinear import drawn_later, new_weight_epoch
from sigma.model.block import SigmaBlock
from sigma.model.cache import SigmaCache
from sigma.model.configuration import SigmaConfig
from sigma.model.layout import SequenceLayout, packed_layout, plain_layout
from sigma.model.loss import causal_lm_loss
from sigma.model.mla import DifferentialMLA
from sigma.model.norm import RMSNorm
from sigma.model.weights import initialize, name_module, parallel_draws, parameter_roles


class SigmaPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about every SIGMA model."""

    config_class = SigmaConfig
    config: SigmaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _is_stateful = True  # no assisted decoding: a recurrent state cannot be rolled back
    _no_split_modules = ["SigmaBlock"]  # noqa: RUF012 (transformers' own types)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config)

    def initialize_weights(self) -> None:
        """As in transformers, over all cores."""
        with parallel_draws():
            super().initialize_weights()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False: `forward` makes its own SigmaCache, which holds recurrent states too."""
        return False

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a model whose configuration asks for INSTANT comes back patched.

        Weights on the CPU are copied out of the mapped file: there they lie at odd addresses, where a matrix product
        may sum in another order, and the logits would not be those of the saved model to the bit.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for parameter in model.parameters():
            if parameter.device.type == "cpu":
                parameter.data = parameter.data.clone()
        if model.config.instant_enabled:
            patch(model)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As in transformers, with `instant_enabled` false in the file: an export runs without being patched."""
        enabled, self.config.instant_enabled = self.config.instant_enabled, False
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config.instant_enabled = enabled


class SigmaModel(SigmaPreTrainedModel):
    """The stack without a head: token ids to the normalised residual stream."""

    def __init__(self, config: SigmaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embedding_scale = config.hidden_size**0.5
        with drawn_later():
            self.layers = nn.ModuleList(SigmaBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        for name, module in self.named_modules():
            name_module(module, name)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: SigmaCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        segment_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the stack; arguments as in `SigmaForCausalLM.forward`.

        Raises RuntimeError when INSTANT is enabled but not in place, ValueError for arguments that contradict.
        """
        require_patched(self)
        if kwargs.get("output_attentions"):
            raise ValueError("output_attentions is not available: the attention maps are never formed")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x_BTD = embeds_BTD * self.embedding_scale
        packed = segment_ids is not None or cu_seqlens is not None
        cache = self._cache(past_key_values, use_cache, packed)
        layout = self._layout(x_BTD, attention_mask, position_ids, segment_ids, cu_seqlens, cache)
        inputs = []
        for layer in self.layers:
            inputs += [x_BTD] if output_hidden_states else []
            x_BTD = layer(x_BTD, layout, past_key_values=cache)
        x_BTD = self.norm(x_BTD)
        hidden_states = (*inputs, x_BTD) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=x_BTD, past_key_values=cache, hidden_states=hidden_states)

    def _cache(self, given: SigmaCache | None, use_cache: bool | None, packed: bool) -> SigmaCache | None:
        if use_cache is None:
            use_cache = self.config.use_cache and not torch.is_grad_enabled() and not packed
        if not use_cache:
            return None
        if packed:
            raise ValueError("packed documents cannot be cached: pass use_cache=False with segment_ids or cu_seqlens")
        if given is not None and not isinstance(given, SigmaCache):
            raise TypeError(
                f"past_key_values must be a SigmaCache (or None to start one), not a {type(given).__name__}"
            )
        if given is not None and self.training and torch.is_grad_enabled() and given.get_seq_length():
            raise ValueError("a cache carries no gradient: train on whole sequences, with use_cache=False")
        return SigmaCache(self.config) if given is None else given

    def _layout(
        self,
        x_BTD: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        segment_ids: Tensor | None,
        cu_seqlens: Tensor | None,
        cache: SigmaCache | None,
    ) -> SequenceLayout:
        batch, length = x_BTD.shape[:2]
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=x_BTD.device)
        position_BT = position_ids.expand(batch, length)
        if segment_ids is None and cu_seqlens is None:
            return plain_layout(attention_mask, position_BT, past)
        if attention_mask is not None:
            raise ValueError("give segment_ids (-1 is padding) or attention_mask, not both")
        return packed_layout(segment_ids, cu_seqlens, position_BT)


class SigmaForCausalLM(SigmaPreTrainedModel, GenerationMixin):
    """The language model: SigmaModel and a linear head, tied to the embedding by default."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (transformers reads a dict)

    def __init__(self, config: SigmaConfig) -> None:
        super().__init__(config)
        self.model = SigmaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        name_module(self.lm_head, "lm_head")
        self.loss_function = causal_lm_loss
        self.post_init()
        if unused := list(range(config.tokenizer_vocab_size, config.vocab_size)):
            self.generation_config.suppress_tokens = unused

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: SigmaCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        segment_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[B, T, V]` (of the last `logits_to_keep` positions if not 0), and the loss when labels are given.

        `attention_mask [B, past + T]` is 0 at padding. `segment_ids [B, T]` (int32, -1 is padding) numbers the
        documents of packed rows; `cu_seqlens` int32 `[n + 1]` says the same over the flattened B*T tokens, and without
        it the device is asked once. `labels` are aligned with `input_ids`, `shift_labels` with the position that
        predicts them; -100 is ignored. `loss` is the mean cross-entropy in nats. `position_ids` matter only when
        `rope_dim` > 0. `use_cache` None caches as the configuration says where no gradient is recorded.
        Raises RuntimeError when INSTANT is enabled but not in place, ValueError for arguments that contradict.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            segment_ids=segment_ids,
            cu_seqlens=cu_seqlens,
            return_dict=True,
            **{key: kwargs.pop(key) for key in ("output_hidden_states", "output_attentions") if key in kwargs},
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None or shift_labels is not None:
            size = self.config.vocab_size
            loss = self.loss_function(logits, labels, vocab_size=size, shift_labels=shift_labels, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def aux_loss(self) -> Tensor:
        """Sum of the routers' losses of the last training forward, a scalar with gradient; zero before the first."""
        return torch.stack([layer.moe.aux_loss() for layer in self._blocks()]).sum()

    def metrics(self) -> dict[str, Tensor]:
        """Device scalars of the last forward: over the layers the least `_min`, the greatest `_max`, else the mean."""
        per_layer: dict[str, list[Tensor]] = {}
        for layer in self._blocks():
            found = layer.moe.metrics()
            if isinstance(layer.mixer, DifferentialMLA):
                found = found | layer.mixer.lambda_stats
            for name, value in found.items():
                per_layer.setdefault(name, []).append(value)
        return {name: _over_layers(name, torch.stack(values)) for name, values in per_layer.items()}

    def after_update(self) -> None:
        """Balance the routers and start a new epoch of quantised weights. Call it after every optimizer step."""
        for layer in self._blocks():
            layer.moe.after_update()
        new_weight_epoch(self)

    def drop_graph(self) -> None:
        """Let go of the graph that `aux_loss` holds, when the last forward is given up without an update."""
        for layer in self._blocks():
            layer.moe.router.drop_graph()

    @contextmanager
    def one_layer_of_each_kind(self) -> Iterator[None]:
        """Inside, the stack is the first layer with attention and the first without: all that it can launch."""
        layers, first = self.model.layers, {}
        for layer, kind in zip(layers, self.config.layer_types, strict=True):
            first.setdefault(kind, layer)
        self.model.layers = nn.ModuleList(first.values())
        try:
            yield
        finally:
            self.model.layers = layers

    def parameter_roles(self) -> dict[str, str | tuple[str, Sequence[int]]]:
        """Role of every parameter for the optimizers: see `sigma.model.weights.parameter_roles`."""
        return parameter_roles(self)

    def _blocks(self) -> list[SigmaBlock]:
        return list(self.model.layers)  # pyright: ignore[reportReturnType]


def _over_layers(name: str, values: Tensor) -> Tensor:
    if name.endswith("_min"):
        return values.min()
    return values.max() if name.endswith("_max") else values.mean()


def register() -> None:
    """Make the Auto classes of transformers know `model_type` "sigma"; done when this module is imported."""
    AutoConfig.register("sigma", SigmaConfig, exist_ok=True)
    AutoModel.register(SigmaConfig, SigmaModel, exist_ok=True)
    AutoModelForCausalLM.register(SigmaConfig, SigmaForCausalLM, exist_ok=True)


register()
