"""One layer of the stack: a mixer and a mixture of experts, each pre-norm with a residual connection."""

from __future__ import annotations

from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from sigma.memory.instant import recompute
from sigma.model.cache import SigmaCache
from sigma.model.configuration import SigmaConfig
from sigma.model.layout import SequenceLayout
from sigma.model.mamba3 import Mamba3Mixer
from sigma.model.mla import DifferentialMLA
from sigma.model.moe import MoE
from sigma.model.norm import RMSNorm


class SigmaBlock(GradientCheckpointingLayer):
    """x + mixer(norm(x)), then the same with the mixture of experts. The mixer is what `config.layer_types` says."""

    instant_regions = ("mixer_norm", "moe_norm")

    def __init__(self, config: SigmaConfig, layer_idx: int) -> None:
        super().__init__()
        attention = config.layer_types[layer_idx] == "full_attention"
        self.layer_idx = layer_idx
        self.mixer_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mixer = DifferentialMLA(config) if attention else Mamba3Mixer(config)
        self.moe_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.moe = MoE(config)

    def forward(self, x_BTD: Tensor, layout: SequenceLayout, past_key_values: SigmaCache | None = None) -> Tensor:
        """The residual stream after this layer; the layer's own part of `past_key_values` takes the new tokens."""
        cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        mixed = self.mixer(recompute(self, self.mixer_norm, x_BTD), layout, cache)
        normed, x_BTD = recompute(self, self.moe_norm, mixed, x_BTD)
        return x_BTD + self.moe(normed, layout.valid_BT)
