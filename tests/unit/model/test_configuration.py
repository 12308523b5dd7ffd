from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoConfig

from sigma.config.model import ModelSection
from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma.config.train import TrainSection
from sigma.core.errors import ConfigError
from sigma.model.configuration import SigmaConfig, layer_types_of, sigma_config_from

SIZES = {
    "d_model": 48, "n_layers": 6, "ssm_state": 12, "ssm_head_dim": 8, "ssm_expand": 1.5, "mimo_rank": 2,
    "n_heads": 3, "attention_head_dim": 10, "kv_latent_dim": 20, "d_ff": 36, "n_routed_experts": 5, "moe_top_k": 2,
}  # fmt: skip


def run_config(**changes) -> RunConfig:
    return RunConfig(
        run=RunSection(seed=77), model=ModelSection(**(SIZES | changes)), train=TrainSection(instant_enabled=False)
    )


@pytest.mark.parametrize(
    "layers, mamba, attention, expected",
    [
        (6, 3, 1, "mmmamm"),
        (6, 2, 2, "mmaamm"),
        (3, 1, 0, "mmm"),
        (3, 0, 1, "aaa"),
        (5, 5, 1, "mmmmm"),
    ],
)
def test_layer_i_is_attention_when_i_mod_the_period_is_not_below_the_mamba_ratio(layers, mamba, attention, expected):
    kinds = layer_types_of(layers, mamba, attention)
    assert "".join("a" if kind == "full_attention" else "m" for kind in kinds) == expected


def test_no_layer_of_either_kind_is_refused():
    with pytest.raises(ConfigError, match="--mamba-ratio and --attention-ratio are both 0"):
        layer_types_of(4, 0, 0)


def test_every_size_of_the_run_reaches_the_model():
    config = sigma_config_from(run_config(rope_dim=4, tie_embeddings=False, quant_mode="none"), vocab_size=100)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 6, 3)
    assert (config.head_dim, config.kv_latent_dim, config.rope_dim) == (10, 20, 4)
    assert (config.ssm_num_heads, config.ssm_head_dim, config.ssm_state, config.mimo_rank) == (9, 8, 12, 2)
    assert (config.intermediate_size, config.n_routed_experts, config.num_experts_per_tok) == (36, 5, 2)
    assert (config.quant_mode, config.tie_word_embeddings, config.instant_enabled) == ("none", False, False)
    assert config.init_seed == 77


@pytest.mark.parametrize("name, value", [("ssm_groups", 3), ("router_z_weight", 0.5), ("ssm_chunk", 7)])
def test_options_without_another_name_keep_theirs(name, value):
    assert getattr(sigma_config_from(run_config(**{name: value}), 10), name) == value


def test_the_vocabulary_is_padded_and_its_true_size_kept():
    config = sigma_config_from(run_config(vocab_multiple=64), vocab_size=130)
    assert (config.vocab_size, config.tokenizer_vocab_size) == (192, 130)


@pytest.mark.parametrize("fraction, pairs", [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_the_rotating_share_counts_pairs_of_channels(fraction, pairs):
    assert sigma_config_from(run_config(ssm_rope_fraction=fraction), 10).ssm_rotating_pairs == pairs


def test_open_sizes_are_named():
    config = run_config()
    config = replace(config, model=replace(config.model, d_model=None, moe_top_k=None))
    with pytest.raises(ConfigError, match="d_model, moe_top_k have no value yet"):
        sigma_config_from(config, 10)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ssm_head_dim": 7}, "--d-model 48 times --ssm-expand 1.5 is not a multiple of --ssm-head-dim 7"),
        ({"ssm_groups": 2}, "--ssm-groups must divide"),
        ({"ssm_state": 13}, "--ssm-state must be even"),
        ({"rope_dim": 3}, "--rope-dim must be even"),
    ],
    ids=["heads", "groups", "odd state", "odd rope"],
)
def test_sizes_that_do_not_fit_name_the_flags(changes, message):
    with pytest.raises(ConfigError, match=message):
        sigma_config_from(run_config(**changes), 10)


def test_the_configuration_survives_a_file(tmp_path):
    config = sigma_config_from(run_config(), vocab_size=100)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SigmaConfig)
    ignored = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in loaded.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }
