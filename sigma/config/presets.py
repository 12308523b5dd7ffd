"""Sizes for four classes of machine, and the one place where every `auto` becomes a value."""

from __future__ import annotations

from typing import Any

from sigma.config.parse import DEFAULT, Parsed, build_located, located
from sigma.config.root import RunConfig
from sigma.config.table import get_value, run_flags
from sigma.core.errors import MissingRequirementError

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "d_model": 192, "n_layers": 4,
        "ssm_state": 32, "ssm_expand": 2.0, "mimo_rank": 2,
        "n_heads": 3, "attention_head_dim": 64, "kv_latent_dim": 128,
        "d_ff": 192, "n_routed_experts": 8, "moe_top_k": 2,
        "seq_len": 512, "batch_size": 4, "micro_batch_size": 4,
        "bootstrap_seed_batches": 480, "steps": 480, "lr": 4e-3, "adam_lr": 3e-3,
    },
    "small": {
        "d_model": 512, "n_layers": 12,
        "ssm_state": 64, "ssm_expand": 2.0, "mimo_rank": 4,
        "n_heads": 4, "attention_head_dim": 64, "kv_latent_dim": 128,
        "d_ff": 512, "n_routed_experts": 8, "moe_top_k": 2,
        "seq_len": 1024, "batch_size": 32, "micro_batch_size": 8,
        "bootstrap_seed_batches": 64, "steps": 5000, "lr": 2e-3, "adam_lr": 1.5e-3,
    },
    "base": {
        "d_model": 1024, "n_layers": 16,
        "ssm_state": 64, "ssm_expand": 2.0, "mimo_rank": 4,
        "n_heads": 8, "attention_head_dim": 64, "kv_latent_dim": 256,
        "d_ff": 896, "n_routed_experts": 8, "moe_top_k": 2,
        "seq_len": 2048, "batch_size": 64, "micro_batch_size": 8,
        "bootstrap_seed_batches": 64, "steps": 10000, "lr": 1.5e-3, "adam_lr": 1e-3,
    },
    "large": {
        "d_model": 1536, "n_layers": 24,
        "ssm_state": 64, "ssm_expand": 2.0, "mimo_rank": 4,
        "n_heads": 12, "attention_head_dim": 64, "kv_latent_dim": 256,
        "d_ff": 1152, "n_routed_experts": 8, "moe_top_k": 2,
        "seq_len": 2048, "batch_size": 128, "micro_batch_size": 8,
        "bootstrap_seed_batches": 64, "steps": 20000, "lr": 1e-3, "adam_lr": 6e-4,
    },
}  # fmt: skip
"""A value for every field whose default is None. Parameters: 10.8 M, 108 M, 497 M and 1.46 G.

What expansion, state and rank of the scan cost: docs/log.md, "Sizes of a layer"."""

MEMORY_GB = (("large", 38.0), ("base", 15.0), ("small", 5.5), ("demo", 0.0))
"""Smallest device memory for which `auto` takes a preset; a little under the size printed on the card."""

NO_CUDA = "no usable NVIDIA GPU; run `sigma doctor` for the reason, or train on the CPU with --device cpu"


def resolve(config: RunConfig, device_memory_gb: float | None) -> RunConfig:
    """`config` without any None or `auto`. `device_memory_gb` is None without a usable CUDA device.

    Raises MissingRequirementError when CUDA is demanded and missing, ConfigError when values contradict each other.
    """
    given = {flag.field: value for flag in run_flags().values() if (value := get_value(config, flag)) != flag.default}
    return resolve_parsed(Parsed(config, given), device_memory_gb).config


def resolve_parsed(parsed: Parsed, device_memory_gb: float | None) -> Parsed:
    """`resolve` that also records which preset chose a value, and why."""
    config = parsed.config
    if config.run.require_cuda and config.run.device == "cpu":
        raise located("--require-cuda and --device cpu contradict each other; remove one", parsed.origins)
    device = _device(config, device_memory_gb)
    memory_gb = device_memory_gb if device == "cuda" else None
    preset, why = _preset(config, memory_gb)
    values = {flag.field: get_value(config, flag) for flag in run_flags().values()}
    origins = dict.fromkeys(values, DEFAULT) | parsed.origins
    chosen: dict[str, Any] = {"device": device, "preset": preset}
    if config.train.precision == "auto":
        chosen["precision"] = "bf16" if device == "cuda" else "fp32"
    for name, value in chosen.items():
        if values[name] != value:
            values[name], origins[name] = value, f"auto ({why})"
    for name, value in PRESETS[preset].items():
        if values[name] is None:
            values[name], origins[name] = value, f"preset {preset}"
    _fit(values, origins, preset)
    return Parsed(build_located(values, origins), parsed.given, origins, parsed.warnings)


def _device(config: RunConfig, memory_gb: float | None) -> str:
    asked = config.run.device
    if memory_gb is None and (config.run.require_cuda or asked == "cuda"):
        raise MissingRequirementError(f"--{'require-cuda' if config.run.require_cuda else 'device cuda'}: {NO_CUDA}")
    if asked != "auto":
        return asked
    return "cpu" if memory_gb is None else "cuda"


def _preset(config: RunConfig, memory_gb: float | None) -> tuple[str, str]:
    why = "no CUDA device in use" if memory_gb is None else f"{memory_gb:.1f} GB of device memory"
    if config.run.preset != "auto":
        return config.run.preset, why
    if memory_gb is None:
        return "demo", why
    return next(name for name, least_gb in MEMORY_GB if memory_gb >= least_gb), why


def _fit(values: dict[str, Any], origins: dict[str, str], preset: str) -> None:
    """Lower what the preset chose where an explicit value of its partner leaves less room."""
    source = f"preset {preset}"
    if origins["micro_batch_size"] == source:
        largest = min(values["micro_batch_size"], values["batch_size"])
        fitting = next(n for n in range(largest, 0, -1) if values["batch_size"] % n == 0)
        _lower(values, origins, "micro_batch_size", fitting, "divides --batch-size")
    if origins["batch_size"] == source and values["batch_size"] % values["micro_batch_size"]:
        micro = values["micro_batch_size"]
        _lower(values, origins, "batch_size", max(micro, values["batch_size"] // micro * micro), "whole micro-batches")
    if origins["moe_top_k"] == source:
        fitting = min(values["moe_top_k"], values["n_routed_experts"])
        _lower(values, origins, "moe_top_k", fitting, "at most --n-routed-experts")


def _lower(values: dict[str, Any], origins: dict[str, str], name: str, value: int, why: str) -> None:
    if values[name] != value:
        values[name], origins[name] = value, f"{origins[name]}, changed ({why})"
