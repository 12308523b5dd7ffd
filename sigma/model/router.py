"""The router: which experts a token goes to, with what weight, and what that choice tells about the token.

Selection (Wang et al., 2408.15664): the top k of sigmoid(logits) + bias. The bias balances the load and does nothing
else: gates are the sigmoids of the selected experts, normalised to sum to 1. After each update the bias of every expert
moves by `balance_lr` towards the mean load.

Information bottleneck (RIB): p = softmax(logits / temperature) is read as a noisy channel from token X to expert E, and
only the terms below use it. In nats, pbar the mean of p over the tokens:

    I(X; E) = H(pbar) - mean H(p)            0 (the choice says nothing) ... ln E (each expert has its own tokens)
    loss    = (-collapse_penalty H(pbar) + info_weight mean H(p)) / ln E    in [-collapse_penalty, info_weight]

Both terms are entropies, so the loss and, with probabilities floored at 1e-12 inside logarithms, its gradient are
bounded; at the uniform start the gradient is zero.

Temperature: clip(1 + temp_gain (ln k / ln E - ema), 0.8, 1.35), with ema the smoothed mean H(p) / ln E and ln k / ln E
its value when a token is undecided among exactly k experts. Sharper routing lowers the ema, raises the temperature and
flattens p: negative feedback. One update moves the ema by decay ema + (1 - decay) h(ema) with |h'| <= temp_gain
max Var_p(ln p) / (ln E * 0.8) < 4.7 for E <= 1024 and temp_gain <= 2, so with decay 0.9 the slope lies in (0.4, 0.9]:
a contraction without oscillation. The temperature shapes the RIB loss and its gradient and nothing else. It is no part
of selection (dividing all logits keeps their order) nor of the gates, so that the output of the model in training and
evaluation is the same function.
T tokens, D width, E experts, K chosen experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from sigma.memory.instant import consuming
from sigma_kernels.bitlinear.op import linear

TEMPERATURE_MIN, TEMPERATURE_MAX = 0.8, 1.35
ENTROPY_DECAY = 0.9
INITIAL_LOGIT_STD = 0.1
"""Of a logit for a normalised input: gates start nearly equal, and a balance step of 1e-3 is felt at once."""
_FLOOR = 1e-12


@dataclass(frozen=True)
class RouterSettings:
    """How a router is trained; the fields are the flags of the model section without their prefix."""

    balance_lr: float = 1e-3
    rib_enabled: bool = True
    collapse_penalty: float = 0.01
    info_weight: float = 0.003
    temp_gain: float = 0.55
    z_weight: float = 1e-4


@dataclass(frozen=True)
class RoutingInformation:
    """Entropies of a routing in nats: of the mean distribution, and the mean over the tokens."""

    marginal: Tensor
    conditional: Tensor

    @property
    def mutual(self) -> Tensor:
        """I(X; E)."""
        return self.marginal - self.conditional


def routing_information(p_TE: Tensor, weight_T: Tensor | None = None) -> RoutingInformation:
    """The entropies of the routing `p_TE` over tokens of equal weight, or of `weight_T` (0 leaves a token out)."""
    ones_T = p_TE.new_ones(p_TE.shape[0]) if weight_T is None else weight_T.to(p_TE.dtype)
    weight_T = ones_T / ones_T.sum().clamp(min=1)
    return RoutingInformation(_entropy(weight_T @ p_TE), weight_T @ _entropy(p_TE))


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=_FLOOR).log()).sum(-1)


class Router(nn.Module):
    """Chooses `top_k` of `n_experts` for each token. fp32 throughout, never ternary.

    State that is saved: `selection_bias` and `entropy_ema`, which change in `after_update` only; `load` and
    `entropy_sum`, which training forwards add to and `after_update` clears, so they are zero in a checkpoint.
    """

    selection_bias: Tensor
    entropy_ema: Tensor
    load: Tensor
    entropy_sum: Tensor

    def __init__(self, width: int, n_experts: int, top_k: int, settings: RouterSettings | None = None) -> None:
        super().__init__()
        if not 1 <= top_k <= n_experts:
            raise ValueError(f"a router cannot choose {top_k} of {n_experts} experts")
        self.n_experts, self.top_k, self.settings = n_experts, top_k, settings or RouterSettings()
        self.max_entropy = math.log(n_experts) if n_experts > 1 else 1.0  # one expert: every entropy is 0, never 0 / 0
        self.weight = nn.Parameter(torch.empty(n_experts, width))
        self.register_buffer("selection_bias", torch.empty(n_experts, dtype=torch.float32))
        self.register_buffer("entropy_ema", torch.empty((), dtype=torch.float32))
        self.register_buffer("load", torch.empty(n_experts, dtype=torch.int64))
        self.register_buffer("entropy_sum", torch.empty((), dtype=torch.float32))
        self._aux_loss: Tensor | None = None
        self._metrics: dict[str, Tensor] = {}
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the weight, from `generator` or else the global one; the state begins anew."""
        for state in (self.selection_bias, self.load, self.entropy_sum):
            init.zeros_(state)
        init.ones_(self.entropy_ema)  # a fresh router is nearly uniform
        init.normal_(self.weight, std=INITIAL_LOGIT_STD / math.sqrt(self.weight.shape[1]), generator=generator)

    def forward(self, x_TD: Tensor, valid_T: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gates fp32 `[T, K]` (they sum to 1) and the experts that they belong to, int64 `[T, K]`.

        Tokens where `valid_T` is False are routed too, but count in no statistic. In training the losses of this
        forward replace those of the last one; so do its metrics, unless it is a probe without gradients.
        """
        with consuming(x_TD):
            logits_TE = linear(x_TD, self.weight, dtype=torch.promote_types(x_TD.dtype, torch.float32))
        score_TE = logits_TE.sigmoid()
        expert_TK = (score_TE.detach() + self.selection_bias).topk(self.top_k, dim=-1).indices
        chosen_TK = score_TE.gather(-1, expert_TK)
        gate_TK = chosen_TK / (chosen_TK.sum(-1, keepdim=True) + 1e-20)
        if self.training:
            self._observe(logits_TE, expert_TK, valid_T)
        return gate_TK, expert_TK

    def aux_loss(self) -> Tensor:
        """RIB loss + z-loss of the last forward in training, with its gradient; zero before the first one."""
        return self.weight.new_zeros(()) if self._aux_loss is None else self._aux_loss

    def metrics(self) -> dict[str, Tensor]:
        """Device scalars: information and losses of the last training forward, load of the last complete step."""
        return dict(self._metrics)

    def temperature(self) -> Tensor:
        """Temperature of p for the RIB terms; 1 without RIB."""
        if not self.settings.rib_enabled:
            return torch.ones_like(self.entropy_ema)
        target = math.log(self.top_k) / self.max_entropy
        raised = 1 + self.settings.temp_gain * (target - self.entropy_ema)
        return raised.clamp(TEMPERATURE_MIN, TEMPERATURE_MAX)

    @torch.no_grad()
    def after_update(self) -> None:
        """Balance with the tokens seen since the last call, and forget them. A call without tokens changes no state."""
        load_E = self.load.to(torch.float32)
        total, mean = load_E.sum(), load_E.mean()
        self.selection_bias += self.settings.balance_lr * torch.sign(mean - load_E)
        entropy = self.entropy_sum * self.top_k / total.clamp(min=1)
        moved = torch.lerp(entropy, self.entropy_ema, ENTROPY_DECAY)
        self.entropy_ema.copy_(torch.where(total > 0, moved, self.entropy_ema))
        self._metrics["moe_max_violation"] = (load_E.max() - mean) / mean.clamp(min=1e-9)
        self._metrics["moe_dead_experts"] = (load_E == 0).sum().to(torch.float32)
        self.load.zero_()
        self.entropy_sum.zero_()
        self.drop_graph()

    def drop_graph(self) -> None:
        """Let go of the graph of the last forward; its loss stays as a number."""
        if self._aux_loss is not None:
            self._aux_loss = self._aux_loss.detach()

    def _observe(self, logits_TE: Tensor, expert_TK: Tensor, valid_T: Tensor | None) -> None:
        weight_T = logits_TE.new_ones(logits_TE.shape[0]) if valid_T is None else valid_T.to(logits_TE.dtype)
        temperature = self.temperature()
        information = routing_information((logits_TE / temperature).softmax(-1), weight_T)
        rib, z_loss = self._rib_loss(information), self._z_loss(logits_TE, weight_T)
        self._aux_loss = rib + z_loss
        if not torch.is_grad_enabled():
            return
        with torch.no_grad():
            self._count(expert_TK, weight_T, information)
            self._metrics |= {
                "rib_retained_info": information.mutual.detach() / self.max_entropy,
                "rib_compression": information.conditional.detach() / self.max_entropy,
                "rib_collapse": (math.log(self.n_experts) - information.marginal.detach()) / self.max_entropy,
                "rib_aux_loss": rib.detach(),
                "router_z_loss": z_loss.detach(),
                "router_temperature": temperature,
            }

    def _rib_loss(self, information: RoutingInformation) -> Tensor:
        if not self.settings.rib_enabled:
            return torch.zeros_like(information.marginal)
        spread = self.settings.collapse_penalty * information.marginal
        return (self.settings.info_weight * information.conditional - spread) / self.max_entropy

    def _z_loss(self, logits_TE: Tensor, weight_T: Tensor) -> Tensor:
        square_T = logits_TE.logsumexp(-1).square()
        return self.settings.z_weight * (weight_T @ square_T) / weight_T.sum().clamp(min=1)

    def _count(self, expert_TK: Tensor, weight_T: Tensor, information: RoutingInformation) -> None:
        ones_M = weight_T.to(torch.int64)[:, None].expand_as(expert_TK).reshape(-1)
        self.load.scatter_add_(0, expert_TK.reshape(-1), ones_M)
        self.entropy_sum += (information.conditional / self.max_entropy * weight_T.sum()).to(torch.float32)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the module but stay fp32: in bf16 a balance step of 1e-3 is lost once the bias exceeds 0.25."""
        exact = {name: getattr(self, name) for name in ("selection_bias", "entropy_ema", "entropy_sum")}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            moved = getattr(self, name)
            if moved.dtype != value.dtype:
                setattr(self, name, value.to(moved.device))
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the graph of the last forward behind."""
        return self.__dict__ | {"_aux_loss": None}
