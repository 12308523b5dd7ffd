"""Presets fill what was left open, explicit values win, and `auto` looks at the machine."""

import dataclasses

import pytest

from sigma.config.parse import parse
from sigma.config.presets import PRESETS, resolve, resolve_parsed
from sigma.config.root import RunConfig
from sigma.config.table import get_value, run_flags
from sigma.core.errors import ConfigError, MissingRequirementError

OPEN = {flag.field for flag in run_flags().values() if flag.optional}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_fills_exactly_the_open_fields_within_their_bounds(name: str):
    assert set(PRESETS[name]) == OPEN
    resolved = parse([f"--{key.replace('_', '-')}={value}" for key, value in PRESETS[name].items()])
    assert resolved.given == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_last_layer_of_a_preset_is_attention(name: str):
    config = resolve(parse(["--preset", name]).config, 80.0)
    assert config.model.n_layers is not None
    assert config.model.n_layers % (config.model.mamba_ratio + config.model.attention_ratio) == 0


def parameters(name: str) -> float:
    """Matrix parameters of a preset: mixers, experts of three matrices, and an embedding of 8192 tokens."""
    p, m = PRESETS[name], RunConfig().model
    width, inner = p["d_model"], p["d_model"] * p["ssm_expand"]
    mamba = width * (2 * inner + 2 * p["mimo_rank"] * p["ssm_state"] * m.ssm_groups) + inner * width
    values = p["n_heads"] * p["attention_head_dim"]
    attention = 4 * width * values + 3 * p["kv_latent_dim"] * values + width * p["kv_latent_dim"]
    experts = 3 * width * p["d_ff"] * (p["n_routed_experts"] + m.n_shared_experts)
    share = m.mamba_ratio / (m.mamba_ratio + m.attention_ratio)
    return p["n_layers"] * (share * mamba + (1 - share) * attention + experts) + 8192 * width


@pytest.mark.parametrize("name, millions", [("demo", 6.5), ("small", 110), ("base", 500), ("large", 1500)])
def test_presets_have_the_size_that_they_stand_for(name: str, millions: float):
    assert parameters(name) / 1e6 == pytest.approx(millions, rel=0.15)


@pytest.mark.parametrize(
    "memory_gb, preset",
    [(None, "demo"), (4, "demo"), (7.6, "small"), (15.6, "base"), (23.6, "base"), (39.4, "large"), (139, "large")],
)
def test_auto_takes_the_largest_preset_that_fits(memory_gb: float | None, preset: str):
    config = resolve(RunConfig(), memory_gb)
    assert config.run.preset == preset
    assert config.run.device == ("cpu" if memory_gb is None else "cuda")
    assert config.train.precision == ("fp32" if memory_gb is None else "bf16")
    assert {name: getattr(config.model, name) for name in ("d_model", "n_layers")}.items() <= PRESETS[preset].items()


def test_resolved_configuration_holds_no_auto():
    config = resolve(RunConfig(), 80.0)
    values = [get_value(config, flag) for flag in run_flags().values()]
    assert None not in values
    assert "auto" not in values


def test_resolving_twice_changes_nothing():
    once = resolve_parsed(parse(["--preset", "small", "--batch-size", "6"]), None)
    twice = resolve_parsed(once, None)
    assert twice == once


def test_device_cpu_does_not_look_at_the_gpu():
    config = resolve(parse(["--device", "cpu"]).config, 80.0)
    assert (config.run.device, config.run.preset, config.train.precision) == ("cpu", "demo", "fp32")


def test_explicit_flag_wins_over_the_preset_and_origins_tell():
    parsed = resolve_parsed(parse(["--d-model", "64", "--preset", "small", "--precision=fp32"]), 24.0)
    assert parsed.config.model.d_model == 64
    assert parsed.config.model.n_layers == PRESETS["small"]["n_layers"]
    names = ("d_model", "preset", "n_layers", "device", "seed", "precision")
    assert [parsed.origins[name] for name in names] == [
        "command line", "command line", "preset small", "auto (24.0 GB of device memory)", "default", "command line",
    ]  # fmt: skip


@pytest.mark.parametrize("batch, micro", [(4, 4), (6, 6), (12, 6), (7, 7), (11, 1), (64, 8)])
def test_micro_batch_of_the_preset_follows_an_explicit_batch(batch: int, micro: int):
    parsed = resolve_parsed(parse(["--preset", "small", "--batch-size", str(batch)]), None)
    assert parsed.config.data.micro_batch_size == micro
    changed = parsed.origins["micro_batch_size"] != "preset small"
    assert changed == (micro != PRESETS["small"]["micro_batch_size"])


@pytest.mark.parametrize("micro, batch", [(2, 32), (3, 30), (64, 64)])
def test_batch_of_the_preset_follows_an_explicit_micro_batch(micro: int, batch: int):
    config = parse(["--preset", "small", "--micro-batch-size", str(micro)]).config
    assert resolve(config, None).data.batch_size == batch


def test_chosen_experts_follow_an_explicit_number_of_experts():
    parsed = resolve_parsed(parse(["--n-routed-experts", "1"]), None)
    assert parsed.config.model.moe_top_k == 1
    assert parsed.origins["moe_top_k"] == "preset demo, changed (at most --n-routed-experts)"


def test_explicit_values_are_never_fitted():
    with pytest.raises(
        ConfigError, match=r"^command line and preset demo: --moe-top-k 9 is more than --n-routed-experts 8"
    ):
        resolve_parsed(parse(["--moe-top-k", "9"]), None)


@pytest.mark.parametrize("flag", [["--require-cuda"], ["--device", "cuda"]], ids=["require-cuda", "device-cuda"])
def test_demanded_gpu_that_is_missing_is_exit_3_with_a_remedy(flag: list[str]):
    with pytest.raises(MissingRequirementError, match="no usable NVIDIA GPU; run `sigma doctor`") as caught:
        resolve(parse(flag).config, None)
    assert caught.value.exit_code == 3
    assert resolve(parse(flag).config, 8.0).run.device == "cuda"


def test_resolve_keeps_what_was_set_in_code():
    config = dataclasses.replace(RunConfig(), train=dataclasses.replace(RunConfig().train, steps=3, lr=0.25))
    resolved = resolve(config, None)
    assert (resolved.train.steps, resolved.train.lr) == (3, 0.25)
