"""Mixture of experts: shared experts see every token, routed experts the tokens that chose them. No token is dropped.

DeepSeekMoE (2401.06066) with the router of `router.py`. Every expert is a ReLU^2 gated unit with a norm before its
down-projection, as in b1.58 2B4T (2504.12285): down(norm(relu(g)^2 * u)), (g, u) = up(x). Why not SwiGLU: about 63 %
of the codes of a row are then exactly zero, which makes the int8 error of the down-projection a little smaller (1.57 %
against 1.76 % at width 512, Gaussian g and u), there is no exponential, and a later kernel can skip the zeros.
D width, F hidden width of one expert, E experts, K chosen, T tokens, M = T K rows sorted by expert.
"""

from __future__ import annotations

from torch import Tensor, nn

from sigma.memory.instant import consuming, recompute
from sigma.model.bitlinear import BitLinear, QuantizedWeight, QuantMode
from sigma.model.configuration import SigmaConfig
from sigma.model.norm import RMSNorm
from sigma.model.router import Router, RouterSettings
from sigma_kernels.experts.op import ExpertSort, combine, expert_linear, sort_by_expert
from sigma_kernels.relu2_gate.op import relu2_gate


class ExpertLinear(QuantizedWeight):
    """One matrix `[N, K]` for each of E experts, stacked; ternary with one scale each, or plain."""

    def __init__(
        self, n_experts: int, in_features: int, out_features: int, *, quant_mode: QuantMode, init_scale: float = 1.0
    ) -> None:
        super().__init__(n_experts, out_features, in_features, quant_mode=quant_mode, init_scale=init_scale)

    def forward(self, x: Tensor, rows: ExpertSort, *, gather: bool, gate_M: Tensor | None = None) -> Tensor:
        """`[M, N]`, row m by the expert of m, times `gate_M`; see `sigma_kernels.experts.op.expert_linear`."""
        codes, scale = self.quantized_weight() if self.ternary else (None, None)
        with consuming(x):
            return expert_linear(x, self.weight, rows, gather=gather, codes_ENK=codes, scale_E=scale, gate_M=gate_M)


class SharedExpert(nn.Module):
    """A gated unit that every token passes."""

    instant_regions = ("activation",)

    def __init__(self, width: int, hidden: int, *, quant_mode: QuantMode, eps: float, init_scale: float) -> None:
        super().__init__()
        self.up = BitLinear(width, 2 * hidden, quant_mode=quant_mode, splits=(hidden, hidden))
        self.sub_norm = RMSNorm(hidden, eps)
        self.down = BitLinear(hidden, width, quant_mode=quant_mode, init_scale=init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        return self.down(recompute(self, self._activation, self.up(x)))

    def _activation(self, up: Tensor) -> Tensor:
        return self.sub_norm(relu2_gate(up))


class MoE(nn.Module):
    """The sum of the shared experts and of the gated routed experts; the second sublayer of every layer.

    Down-projections start at 1 / sqrt(2 layers) of their scale, so that the sum of all 2 L sublayers has variance 1.
    """

    instant_regions = ("activation",)

    def __init__(self, config: SigmaConfig) -> None:
        super().__init__()
        width, hidden, n_routed = config.hidden_size, config.intermediate_size, config.n_routed_experts
        mode, out_scale = config.quant_mode, config.residual_scale
        settings = RouterSettings(
            balance_lr=config.router_balance_lr,
            rib_enabled=config.rib_router_enabled,
            collapse_penalty=config.rib_collapse_penalty,
            info_weight=config.rib_info_weight,
            temp_gain=config.rib_temp_gain,
            z_weight=config.router_z_weight,
        )
        self.router = Router(width, n_routed, config.num_experts_per_tok, settings)
        shared = {"quant_mode": mode, "eps": config.rms_norm_eps, "init_scale": out_scale}
        self.shared = nn.ModuleList(SharedExpert(width, hidden, **shared) for _ in range(config.n_shared_experts))
        self.up = ExpertLinear(n_routed, width, 2 * hidden, quant_mode=mode)
        self.sub_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.down = ExpertLinear(n_routed, hidden, width, quant_mode=mode, init_scale=out_scale)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`x` `[..., D]`, already normalised, to `[..., D]`.

        Padding, where `valid` `[...]` is False, passes through the experts but counts in no statistic of the router.
        """
        x_TD = x.reshape(-1, x.shape[-1])
        gate_TK, expert_TK = self.router(x_TD, None if valid is None else valid.reshape(-1))
        y_TD = self._routed(x_TD, gate_TK, expert_TK)
        for expert in self.shared:
            y_TD = y_TD + expert(x_TD)
        return y_TD.view(x.shape)

    def _routed(self, x_TD: Tensor, gate_TK: Tensor, expert_TK: Tensor) -> Tensor:
        rows = sort_by_expert(expert_TK, self.router.n_experts)
        hidden_MF = recompute(self, self._activation, self.up(x_TD, rows, gather=True))
        gate_M = gate_TK.reshape(-1)[rows.order_M]
        return combine(self.down(hidden_MF, rows, gather=False, gate_M=gate_M), rows)

    def _activation(self, up_MF2: Tensor) -> Tensor:
        return self.sub_norm(relu2_gate(up_MF2))

    def aux_loss(self) -> Tensor:
        """The router's loss of the last training forward, with gradient."""
        return self.router.aux_loss()

    def metrics(self) -> dict[str, Tensor]:
        """The router's device scalars."""
        return self.router.metrics()

    def after_update(self) -> None:
        """Balance the router and begin a new weight epoch. Call it after every optimizer step."""
        self.router.after_update()
        for module in self.modules():
            if isinstance(module, QuantizedWeight):
                module.new_weight_epoch()
