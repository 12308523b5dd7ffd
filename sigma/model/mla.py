"""Multi-head latent attention with differential heads.

The keys and values of all heads are projections of one latent per token (MLA, DeepSeek-V2, arXiv 2405.04434): only
the latent is cached. Each output head has two query heads on the *same* key/value head; the second map is subtracted,
weighted per token and head (Differential Transformer V2: no per-head norm, sigmoid weight):

    o_h = softmax(q_2h k_h^T) v_h - sigmoid(x W_h + logit(init)) softmax(q_2h+1 k_h^T) v_h

Training and prefill expand the latent into keys and values. Decoding absorbs the up-projections instead: the query is
projected into the latent space, the maps are subtracted there, and one value projection is left. Both forms agree
although `k_up` and `v_up` are ternary: a ternary layer is linear in its *quantised* input, so the cache keeps the
quantised latent (its values, not its codes), and quantising that again changes nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.memory.instant import recompute
from sigma.model.bitlinear import BitLinear
from sigma.model.cache import LatentLayer
from sigma.model.configuration import SigmaConfig
from sigma.model.layout import SequenceLayout
from sigma.model.norm import RMSNorm
from sigma.model.rope import rotary_angles, rotate


class DifferentialMLA(nn.Module):
    """Differential multi-head latent attention; the mixer of a `full_attention` layer.

    The rotary key is optional (`rope_dim` 0 is NoPE), shared by all heads and concatenated to the content key, so the
    scores are scaled by 1 / sqrt(head_dim + rope_dim).
    """

    instant_regions = ("q_norm", "kv_norm", "difference")

    def __init__(self, config: SigmaConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.latent_dim, self.rope_dim, self.rope_theta = config.kv_latent_dim, config.rope_dim, config.rope_theta
        self.scale = (self.head_dim + self.rope_dim) ** -0.5
        mode, width, inner = config.quant_mode, config.hidden_size, self.heads * self.head_dim
        if config.q_latent_dim:
            self.q_down = BitLinear(width, config.q_latent_dim, quant_mode=mode)
            self.q_norm = RMSNorm(config.q_latent_dim, config.rms_norm_eps)
        query_dim = 2 * self.heads * (self.head_dim + self.rope_dim)
        self.q_up = BitLinear(config.q_latent_dim or width, query_dim, quant_mode=mode)
        splits = (self.latent_dim, self.rope_dim) if self.rope_dim else ()
        self.kv_down = BitLinear(width, self.latent_dim + self.rope_dim, quant_mode=mode, splits=splits)
        self.kv_norm = RMSNorm(self.latent_dim, config.rms_norm_eps)
        self.k_up = BitLinear(self.latent_dim, inner, quant_mode=mode)
        self.v_up = BitLinear(self.latent_dim, inner, quant_mode=mode)
        self.lambda_proj = BitLinear(width, self.heads, quant_mode="none", init_scale=0)  # starts at the same lambda
        self.lambda_logit = math.log(config.diff_attention_lambda_init / (1 - config.diff_attention_lambda_init))
        self.sub_norm = RMSNorm(inner, config.rms_norm_eps)
        self.out_proj = BitLinear(inner, width, quant_mode=mode, init_scale=config.residual_scale)
        self.lambda_stats: dict[str, Tensor] = {}
        self.difference_changed: Tensor | None = None  # whether the last output is not that of the first map alone

    def forward(self, x_BTD: Tensor, layout: SequenceLayout, cache: LatentLayer | None = None) -> Tensor:
        """Mix the tokens of `x_BTD` (already normalised); `cache` receives the new latents. Returns `[B, T, D]`."""
        query_BTHJd = self._queries(x_BTD, layout)
        latent_BTL, rope_key_BTr = self._latents(x_BTD, layout)
        weight_BTH = torch.sigmoid(_exact(self.lambda_proj(x_BTD)) + self.lambda_logit)
        self._observe(weight_BTH.detach())
        attend = self._attend_expanded
        if cache is not None:
            cached_BSL, cached_BSr = cache.append(self.k_up.quantized_input(latent_BTL), rope_key_BTr.detach())
            if cached_BSL.shape[1] > x_BTD.shape[1]:
                latent_BTL, rope_key_BTr = cached_BSL, cached_BSr
                attend = self._attend_absorbed if x_BTD.shape[1] == 1 else attend
        return self.out_proj(attend(query_BTHJd, latent_BTL, rope_key_BTr, weight_BTH, layout.mask_B1TS))

    def _queries(self, x_BTD: Tensor, layout: SequenceLayout) -> Tensor:
        """`[B, T, H, 2, head_dim + rope_dim]`: query heads 2h and 2h + 1 are the pair of output head h."""
        if hasattr(self, "q_down"):
            x_BTD = recompute(self, self.q_norm, self.q_down(x_BTD))
        query = self.q_up(x_BTD).unflatten(-1, (self.heads, 2, self.head_dim + self.rope_dim))
        if not self.rope_dim:
            return query
        content, rotary = query.split([self.head_dim, self.rope_dim], dim=-1)
        cos, sin = rotary_angles(layout.position_BT, self.rope_dim, self.rope_theta)
        return torch.cat([content, rotate(rotary, cos[:, :, None, None], sin[:, :, None, None])], dim=-1)

    def _latents(self, x_BTD: Tensor, layout: SequenceLayout) -> tuple[Tensor, Tensor]:
        latent, rope_key = self.kv_down(x_BTD).split([self.latent_dim, self.rope_dim], dim=-1)
        if self.rope_dim:
            rope_key = rotate(rope_key, *rotary_angles(layout.position_BT, self.rope_dim, self.rope_theta))
        return recompute(self, self.kv_norm, latent), rope_key

    def _attend_expanded(
        self, query_BTHJd: Tensor, latent_BSL: Tensor, rope_key_BSr: Tensor, weight_BTH: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Two attentions over expanded keys and values, subtracted and normalised: `[B, T, H * head_dim]`."""
        key = self.k_up(latent_BSL).unflatten(-1, (self.heads, self.head_dim))
        value = self.v_up(latent_BSL).unflatten(-1, (self.heads, self.head_dim))
        if self.rope_dim:
            key = torch.cat([key, rope_key_BSr[:, :, None].expand(-1, -1, self.heads, -1)], dim=-1)
            value = F.pad(value, (0, self.rope_dim))  # the fast attention kernels want equal widths
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        causal = mask is None and query_BTHJd.shape[1] == latent_BSL.shape[1]
        signal, noise = (
            F.scaled_dot_product_attention(
                query_BTHJd[:, :, :, j].transpose(1, 2), key, value, attn_mask=mask, is_causal=causal, scale=self.scale
            )
            for j in (0, 1)
        )
        return recompute(self, self._difference, signal, noise, weight_BTH)

    def _difference(self, signal_BHTd: Tensor, noise_BHTd: Tensor, weight_BTH: Tensor) -> Tensor:
        out_BHTd = _exact(signal_BHTd) - weight_BTH.transpose(1, 2)[..., None] * _exact(noise_BHTd)
        self.difference_changed = (out_BHTd != signal_BHTd).any()
        out_BTHd = out_BHTd.transpose(1, 2)[..., : self.head_dim]
        return self.sub_norm(out_BTHd.to(signal_BHTd.dtype).flatten(2))

    def _attend_absorbed(
        self, query_B1HJd: Tensor, latent_BSL: Tensor, rope_key_BSr: Tensor, weight_B1H: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The same for one query position, in the latent space: every head reads the one cached latent per token."""
        content, rotary = query_B1HJd.split([self.head_dim, self.rope_dim], dim=-1)
        k_up_HdL, v_up_HdL = (
            up.weight_values().to(content.dtype).view(self.heads, self.head_dim, self.latent_dim)
            for up in (self.k_up, self.v_up)
        )
        query_B1HJL = torch.einsum("bthjd,hdl->bthjl", content, k_up_HdL)
        query = torch.cat([query_B1HJL, rotary], dim=-1).flatten(2, 3)  # the 2H heads are the rows of one attention
        latent_B1SL = latent_BSL[:, None].to(query.dtype)
        key = torch.cat([latent_B1SL, rope_key_BSr[:, None].to(query.dtype)], dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, latent_B1SL, attn_mask=mask, scale=self.scale)
        signal, noise = _exact(mixed).unflatten(2, (self.heads, 2)).unbind(3)
        latent_B1HL = (signal - weight_B1H[..., None] * noise).to(content.dtype)
        return self.sub_norm(torch.einsum("bthl,hdl->bthd", latent_B1HL, v_up_HdL).flatten(2))

    def _observe(self, weight_BTH: Tensor) -> None:
        self.lambda_stats = {
            "diff_attn_lambda_mean": weight_BTH.mean(),
            "diff_attn_lambda_min": weight_BTH.min(),
            "diff_attn_lambda_max": weight_BTH.max(),
        }


def _exact(x: Tensor) -> Tensor:
    """At least fp32: two nearly equal maps are subtracted."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
