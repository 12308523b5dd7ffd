"""RunConfig: the whole configuration as one frozen tree, and the rules that cross sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.data import DataSection
from sigma.config.model import ModelSection
from sigma.config.optim import OptimSection
from sigma.config.run import RunSection
from sigma.config.train import TrainSection
from sigma.core.errors import ConfigError


@dataclass(frozen=True)
class RunConfig:
    """Everything that a user can set. `presets.resolve` replaces every None by the preset's value."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    optim: OptimSection = field(default_factory=OptimSection)
    curvature: CurvatureSection = field(default_factory=CurvatureSection)
    c3o: C3OSection = field(default_factory=C3OSection)

    def __post_init__(self) -> None:
        check_cross_section_rules(self)


def check_cross_section_rules(config: RunConfig) -> None:
    """Raise ConfigError, naming both flags, when two values contradict each other. None means not yet resolved."""
    model, data, train, optim = config.model, config.data, config.train, config.optim
    if model.mamba_ratio + model.attention_ratio < 1:
        raise ConfigError("--mamba-ratio and --attention-ratio are both 0; give at least one of them 1")
    if model.moe_top_k and model.n_routed_experts and model.moe_top_k > model.n_routed_experts:
        raise ConfigError(
            f"--moe-top-k {model.moe_top_k} is more than --n-routed-experts {model.n_routed_experts}; lower the first"
        )
    if data.synthetic_ratio + data.code_ratio > 1:
        raise ConfigError(
            f"--synthetic-ratio {data.synthetic_ratio} and --code-ratio {data.code_ratio} add up to more than 1"
        )
    if data.micro_batch_size and data.batch_size and data.batch_size % data.micro_batch_size:
        raise ConfigError(
            f"--batch-size {data.batch_size} is not a multiple of --micro-batch-size {data.micro_batch_size}"
        )
    if train.warmup_share + train.decay_share > 1:
        raise ConfigError(
            f"--warmup-share {train.warmup_share} and --decay-share {train.decay_share} add up to more than 1"
        )
    if optim.weight_dtype != "fp32" and train.precision == "fp32":
        raise ConfigError(f"--weight-dtype {optim.weight_dtype} needs --precision bf16, and it is fp32")
    if optim.weight_dtype != "fp32" and train.optimizer == "adamw":
        raise ConfigError(f"--weight-dtype {optim.weight_dtype} is for matrix optimizers; --optimizer is adamw")
    if sum((optim.muon_block_period > 1, optim.muon_interval > 1, optim.teon_layers > 1)) > 1:
        raise ConfigError("--muon-block-period, --muon-interval and --teon-layers exclude each other; leave two at 1")
    if optim.muon_interval > 1 and optim.muon_polynomial != "polar_express":
        raise ConfigError("--muon-interval above 1 needs --muon-polynomial polar_express, whose transform can be kept")
    _check_c3o(train.optimizer, config.c3o)
    low, start, high = config.curvature.gn_damping_min, config.curvature.gn_damping, config.curvature.gn_damping_max
    if not low <= start <= high:
        raise ConfigError(f"--gn-damping {start} is outside --gn-damping-min {low} and --gn-damping-max {high}")


def _check_c3o(optimizer: str, c3o: C3OSection) -> None:
    if c3o.c3o_credit_enabled and optimizer != "c3o":
        raise ConfigError(
            f"--c3o-credit-enabled needs --optimizer c3o, and it is {optimizer}; choose c3o, or remove the switch"
        )
    if c3o.c3o_audit_interval % c3o.c3o_probe_interval:
        raise ConfigError(
            f"--c3o-audit-interval {c3o.c3o_audit_interval} is not a multiple of --c3o-probe-interval"
            f" {c3o.c3o_probe_interval}: an audit takes back the step that a probe kept"
        )
