"""Sizes and mechanisms of the model; None stands for the preset's value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sigma.config.option import opt


@dataclass(frozen=True)
class ModelSection:
    """The hybrid stack: Mamba-3 and differential-MLA mixers, each followed by a mixture of experts."""

    d_model: int | None = opt(None, "Width of the residual stream.", low=16, high=65536)
    n_layers: int | None = opt(None, "Number of layers (a mixer and a mixture of experts each).", low=1, high=1024)
    mamba_ratio: int = opt(3, "Mamba-3 layers in one period of the stack.", low=0, high=64)
    attention_ratio: int = opt(1, "Attention layers in one period of the stack; 0 for none.", low=0, high=64)
    vocab_multiple: int = opt(64, "The embedding is padded to a multiple of this many tokens.", low=1)

    ssm_state: int | None = opt(None, "State size N of a Mamba-3 head.", low=4, high=1024)
    ssm_head_dim: int = opt(64, "Channels P of a Mamba-3 head.", low=4, high=256)
    ssm_expand: float | None = opt(None, "Inner width of a Mamba-3 mixer divided by d-model.", low=0.25, high=8)
    mimo_rank: int | None = opt(
        None, "MIMO rank R of the Mamba-3 scan; 1 is SISO, above 4 there are no fused kernels.", low=1, high=16
    )
    ssm_groups: int = opt(1, "Groups G that share the SSM input and output matrices.", low=1)
    ssm_rope_fraction: float = opt(
        0.5, "Share of the state channels that rotate; 0 switches the rotation off.", low=0, high=1
    )
    ssm_chunk: int = opt(64, "Time steps of one chunk of the scan.", low=1, high=512)
    ssm_pre_gate_norm: bool = opt(True, "Normalise each head's output before the gate.")

    n_heads: int | None = opt(None, "Output heads of differential attention (each is a pair of query heads).", low=1)
    attention_head_dim: int | None = opt(None, "Content and value channels of an attention head.", low=4, high=512)
    kv_latent_dim: int | None = opt(None, "Width of the cached key/value latent.", low=4)
    q_latent_dim: int = opt(0, "Width of the query latent; 0 projects queries directly.", low=0)
    rope_dim: int = opt(0, "Channels of the decoupled rotary key; 0 is NoPE.", low=0, high=256)
    rope_theta: float = opt(10000.0, "Base of the rotary frequencies.", low=1)
    diff_attention_lambda_init: float = opt(
        0.5, "Weight of the subtracted attention map at the start.", low=0.001, high=0.999
    )

    d_ff: int | None = opt(None, "Hidden width of one expert.", low=4)
    n_shared_experts: int = opt(1, "Experts that see every token.", low=0, high=64)
    n_routed_experts: int | None = opt(None, "Experts that the router chooses from.", low=1, high=1024)
    moe_top_k: int | None = opt(None, "Routed experts of one token.", low=1, high=64)
    router_balance_lr: float = opt(
        1e-3, "Step of the selection bias that balances the experts after each update.", low=0, high=1
    )
    rib_router_enabled: bool = opt(True, "Add the bounded information-bottleneck loss of the router.")
    rib_collapse_penalty: float = opt(
        0.01, "Weight of the entropy of the mean routing (keeps experts in use).", low=0, high=1
    )
    rib_info_weight: float = opt(
        0.003, "Weight of the mean routing entropy (makes single choices sharp).", low=0, high=1
    )
    rib_temp_gain: float = opt(
        0.55, "How far the router's temperature follows the smoothed routing entropy.", low=0, high=2
    )
    router_z_weight: float = opt(1e-4, "Weight of the router's z-loss.", low=0, high=1)

    quant_mode: Literal["bitnet_1_58", "none"] = opt("bitnet_1_58", "Ternary mixer and expert matrices, or plain ones.")
    tie_embeddings: bool = opt(True, "Use the embedding as the output head.")

    @property
    def rotating_pairs(self) -> int:
        """Pairs of state channels that rotate, of a resolved section."""
        assert self.ssm_state is not None
        return round(self.ssm_state * self.ssm_rope_fraction / 2)
