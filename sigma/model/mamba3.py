"""The Mamba-3 mixer (arXiv 2603.15569): projections, parameters and their initial values around the scan.

    x -> in_proj (ternary)          -> z [H P] | x [H P] | in [R G N] | out [R G N]
    x -> control_proj (not ternary) -> dt [H] | a [H] | trap [H] | angle [S]
    y = scan(...) * SiLU(z) -> sub_norm -> out_proj (ternary)

Step size, decay, trapezoid and rotation steer a recurrence over thousands of steps, where the rounding of a ternary
product would accumulate; they are a small plain projection. Two norms have two jobs. The optional pre-gate norm (inside
the scan, per head) keeps a head with a large state from drowning the others. The norm before the out-projection gives
every ternary out-projection an input of unit scale, whatever the gate does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from sigma.memory.instant import recompute
from sigma.model.bitlinear import BitLinear
from sigma.model.cache import RecurrentLayer
from sigma.model.configuration import SigmaConfig
from sigma.model.layout import SequenceLayout
from sigma.model.norm import RMSNorm
from sigma_kernels.scan.op import Mamba3State, Mimo, mamba3_scan, mamba3_step

DT_MIN, DT_MAX = 1e-3, 1e-1
CONTROL_INIT_SCALE = 3**-0.5
"""The usual initial value of a linear layer, uniform in +-1 / sqrt(K), has a third of the variance of 1 / K."""


class Mamba3Mixer(nn.Module):
    """State-space mixer with data-dependent rotation, of a `linear_attention` layer; SISO when `mimo_rank` is 1."""

    instant_regions = ("sub_norm",)

    def __init__(self, config: SigmaConfig) -> None:
        super().__init__()
        heads, head_dim, state, rank = config.ssm_num_heads, config.ssm_head_dim, config.ssm_state, config.mimo_rank
        self.heads, self.head_dim, self.chunk = heads, head_dim, config.ssm_chunk
        self.rank, self.matrix_shape = rank, (rank, config.ssm_groups, state)
        inner, matrix = heads * head_dim, rank * config.ssm_groups * state
        splits = (inner, inner, matrix, matrix)
        self.control_splits = (heads, heads, heads, config.ssm_rotating_pairs)
        self.in_proj = BitLinear(config.hidden_size, sum(splits), quant_mode=config.quant_mode, splits=splits)
        self.control_proj = BitLinear(
            config.hidden_size, sum(self.control_splits), quant_mode="none", init_scale=CONTROL_INIT_SCALE
        )
        self.dt_bias_H = nn.Parameter(torch.empty(heads))
        self.in_norm_N = nn.Parameter(torch.empty(state))
        self.out_norm_N = nn.Parameter(torch.empty(state))
        self.in_bias_HRN = nn.Parameter(torch.empty(heads, rank, state))
        self.out_bias_HRN = nn.Parameter(torch.empty(heads, rank, state))
        self.skip_H = nn.Parameter(torch.empty(heads))
        mimo_shape = (heads, rank, head_dim) if rank > 1 else None
        for name in ("mimo_x_HRP", "mimo_z_HRP", "mimo_out_HRP"):
            self.register_parameter(name, nn.Parameter(torch.empty(mimo_shape)) if mimo_shape else None)
        gate_norm = nn.Parameter(torch.empty(heads, head_dim)) if config.ssm_pre_gate_norm else None
        self.register_parameter("y_norm_HP", gate_norm)
        self.sub_norm = RMSNorm(inner, config.rms_norm_eps)
        self.out_proj = BitLinear(
            inner, config.hidden_size, quant_mode=config.quant_mode, init_scale=config.residual_scale
        )

    def reset_parameters(self, generator: torch.Generator) -> None:
        """As the paper's code: dt log-uniform in [0.001, 0.1]; biases, norms and skip 1; MIMO vectors 1/R, 1, 1/R."""
        for ones in (self.in_norm_N, self.out_norm_N, self.in_bias_HRN, self.out_bias_HRN, self.skip_H):
            init.ones_(ones)
        log_dt = torch.empty(self.heads, device=generator.device)
        log_dt.uniform_(math.log(DT_MIN), math.log(DT_MAX), generator=generator)
        dt = log_dt.exp()
        init.copy_(self.dt_bias_H, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        constants = {"mimo_x_HRP": 1 / self.rank, "mimo_z_HRP": 1.0, "mimo_out_HRP": 1 / self.rank, "y_norm_HP": 1.0}
        for name, value in constants.items():
            if (parameter := self._parameters[name]) is not None:
                init.constant_(parameter, value)

    def forward(self, x_BTD: Tensor, layout: SequenceLayout, cache: RecurrentLayer | None = None) -> Tensor:
        """Mix the tokens of `x_BTD` (already normalised); `cache` holds the state before them, then the one after."""
        z, x, matrix_in, matrix_out = self.in_proj(x_BTD).split(self.in_proj.splits, dim=-1)
        heads, matrix = (self.heads, self.head_dim), self.matrix_shape
        inputs = [x.unflatten(-1, heads), z.unflatten(-1, heads)]
        inputs += [matrix_in.unflatten(-1, matrix), matrix_out.unflatten(-1, matrix)]
        inputs += self.control_proj(x_BTD).split(self.control_splits, dim=-1)
        if cache is not None and cache.state is not None and x_BTD.shape[1] == 1:
            y_BTHP = self._step(inputs, layout, cache.state)
            cache.store(cache.state, 1)
        else:
            y_BTHP = self._scan(inputs, layout, cache)
        return self.out_proj(recompute(self, self.sub_norm, y_BTHP.flatten(2)))

    def _scan(self, inputs: list[Tensor], layout: SequenceLayout, cache: RecurrentLayer | None) -> Tensor:
        batch, length = inputs[0].shape[:2]
        if layout.cu_seqlens is not None:  # the packed rows are one long row of sequences
            inputs = [t.flatten(0, 1)[None] for t in inputs]
        result = mamba3_scan(
            *inputs,
            **self._parameters_of_scan(),
            initial_state=None if cache is None else cache.state,
            return_final_state=cache is not None,
            cu_seqlens=layout.cu_seqlens,
            valid_BT=layout.state_valid_BT,
            chunk=self.chunk,
        )
        if not isinstance(result, tuple):
            return result.reshape(batch, length, self.heads, self.head_dim)
        if cache is not None:
            cache.store(result[1], length)
        return result[0]

    def _step(self, inputs: list[Tensor], layout: SequenceLayout, state: Mamba3State) -> Tensor:
        valid_B = None if layout.state_valid_BT is None else layout.state_valid_BT[:, 0]
        y_BHP = mamba3_step(state, *(t[:, 0] for t in inputs), **self._parameters_of_scan(), valid_B=valid_B)
        return y_BHP[:, None]

    def _parameters_of_scan(self) -> dict[str, Any]:
        own = self._parameters
        names = ("dt_bias_H", "in_norm_N", "out_norm_N", "in_bias_HRN", "out_bias_HRN", "skip_H", "y_norm_HP")
        x_HRP, z_HRP, out_HRP = own["mimo_x_HRP"], own["mimo_z_HRP"], own["mimo_out_HRP"]
        mimo = None if x_HRP is None or z_HRP is None or out_HRP is None else Mimo(x_HRP, z_HRP, out_HRP)
        return {name: own[name] for name in names} | {"mimo": mimo}
