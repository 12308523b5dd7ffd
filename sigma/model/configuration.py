"""SigmaConfig: the transformers configuration of the model, every size an explicit number."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any, Literal

from transformers.configuration_utils import PreTrainedConfig

from sigma.config.model import ModelSection
from sigma.config.root import RunConfig
from sigma.core.errors import ConfigError

PAD_TOKEN_ID, BOS_TOKEN_ID, EOS_TOKEN_ID = 0, 1, 2

# flags of ModelSection that transformers knows by another name
_TRANSFORMERS_NAMES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "attention_head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "moe_top_k": "num_experts_per_tok",
    "tie_embeddings": "tie_word_embeddings",
}


class SigmaConfig(PreTrainedConfig):
    """Sizes and mechanisms of `SigmaForCausalLM`; field names are the flags of `ModelSection` or transformers' own.

    `vocab_size` is the number of rows of the embedding, padded to a multiple that matrix products like; ids from
    `tokenizer_vocab_size` on are never a label. Their logits are ordinary logits: masking them would put an operation
    between head and loss. `generate()` suppresses them. `num_attention_heads` counts output heads of differential
    attention; each has two query heads. `layer_types` follows from the two ratios unless given, `tokenizer_vocab_size`
    is `vocab_size` unless given.
    """

    model_type = "sigma"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 512
    tokenizer_vocab_size: int = 0
    hidden_size: int = 64
    num_hidden_layers: int = 4
    mamba_ratio: int = 3
    attention_ratio: int = 1
    layer_types: list[str] = field(default_factory=list)

    ssm_state: int = 16
    ssm_head_dim: int = 16
    ssm_num_heads: int = 8
    mimo_rank: int = 2
    ssm_groups: int = 1
    ssm_rotating_pairs: int = 4
    ssm_chunk: int = 64
    ssm_pre_gate_norm: bool = True

    num_attention_heads: int = 2
    head_dim: int = 16
    kv_latent_dim: int = 32
    q_latent_dim: int = 0
    rope_dim: int = 0
    rope_theta: float = 10000.0
    diff_attention_lambda_init: float = 0.5

    intermediate_size: int = 64
    n_shared_experts: int = 1
    n_routed_experts: int = 4
    num_experts_per_tok: int = 2
    router_balance_lr: float = 1e-3
    rib_router_enabled: bool = True
    rib_collapse_penalty: float = 0.01
    rib_info_weight: float = 0.003
    rib_temp_gain: float = 0.55
    router_z_weight: float = 1e-4

    quant_mode: Literal["bitnet_1_58", "none"] = "bitnet_1_58"
    tie_word_embeddings: bool = True
    instant_enabled: bool = False
    rms_norm_eps: float = 1e-6
    init_seed: int = 0
    use_cache: bool = True
    pad_token_id: int | None = PAD_TOKEN_ID
    bos_token_id: int | None = BOS_TOKEN_ID
    eos_token_id: int | list[int] | None = EOS_TOKEN_ID

    def __post_init__(self, **kwargs: Any) -> None:
        if not self.layer_types:
            self.layer_types = layer_types_of(self.num_hidden_layers, self.mamba_ratio, self.attention_ratio)
        self.tokenizer_vocab_size = self.tokenizer_vocab_size or self.vocab_size
        super().__post_init__(**kwargs)
        check_sizes(self)

    @property
    def residual_scale(self) -> float:
        """Initial scale of what a branch adds to the residual stream: all 2 L branches together add variance 1."""
        return (2 * self.num_hidden_layers) ** -0.5


def layer_types_of(layers: int, mamba_ratio: int, attention_ratio: int) -> list[str]:
    """Kind of each layer: layer i is attention when (i mod (m + a)) >= m.

    Raises ConfigError when both ratios are 0.
    """
    period = mamba_ratio + attention_ratio
    if period < 1:
        raise ConfigError("--mamba-ratio and --attention-ratio are both 0; give at least one of them 1")
    return ["full_attention" if i % period >= mamba_ratio else "linear_attention" for i in range(layers)]


def check_sizes(config: SigmaConfig) -> None:
    """Raise ConfigError for sizes that do not fit together."""
    problems = [
        (config.ssm_num_heads % config.ssm_groups, "--ssm-groups must divide the number of SSM heads"),
        (2 * config.ssm_rotating_pairs > config.ssm_state, "more SSM channels rotate than --ssm-state has"),
        (config.ssm_rotating_pairs and config.ssm_state % 2, "--ssm-state must be even: channels rotate in pairs"),
        (config.rope_dim % 2, "--rope-dim must be even: channels rotate in pairs"),
        (config.num_experts_per_tok > config.n_routed_experts, "--moe-top-k is more than --n-routed-experts"),
        (config.tokenizer_vocab_size > config.vocab_size, "tokenizer_vocab_size is more than vocab_size"),
        (len(config.layer_types) != config.num_hidden_layers, "layer_types must have one entry per layer"),
    ]
    for wrong, message in problems:
        if wrong:
            raise ConfigError(message)


def sigma_config_from(config: RunConfig, vocab_size: int) -> SigmaConfig:
    """The model of a resolved RunConfig for a tokenizer of `vocab_size` tokens.

    Raises ConfigError when a size is still open (the preset was not resolved) or the sizes do not fit together.
    """
    section = config.model
    open_flags = [f.name for f in fields(ModelSection) if getattr(section, f.name) is None]
    if open_flags:
        raise ConfigError(f"resolve the preset first: {', '.join(open_flags)} have no value yet")
    values = {_TRANSFORMERS_NAMES.get(f.name, f.name): getattr(section, f.name) for f in fields(ModelSection)}
    multiple, expand, _ = (values.pop(k) for k in ("vocab_multiple", "ssm_expand", "ssm_rope_fraction"))
    return SigmaConfig(
        vocab_size=-(-vocab_size // multiple) * multiple,
        tokenizer_vocab_size=vocab_size,
        ssm_num_heads=_ssm_heads(values["hidden_size"], expand, values["ssm_head_dim"]),
        ssm_rotating_pairs=section.rotating_pairs,
        instant_enabled=config.train.instant_enabled,
        init_seed=config.run.seed,
        **values,
    )


def _ssm_heads(width: int, expand: float, head_dim: int) -> int:
    heads = width * expand / head_dim
    if heads < 1 or heads != int(heads):
        raise ConfigError(
            f"--d-model {width} times --ssm-expand {expand} is not a multiple of --ssm-head-dim {head_dim}; change one"
        )
    return int(heads)
