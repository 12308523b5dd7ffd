"""Tiny models for the tests of the whole stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.model.configuration import SigmaConfig
from sigma.model.modeling import SigmaForCausalLM

TINY = {
    "vocab_size": 64, "hidden_size": 24, "num_hidden_layers": 4,
    "ssm_state": 8, "ssm_head_dim": 6, "ssm_num_heads": 4, "mimo_rank": 2, "ssm_rotating_pairs": 2, "ssm_chunk": 4,
    "num_attention_heads": 3, "head_dim": 4, "kv_latent_dim": 10,
    "intermediate_size": 20, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "quant_mode": "none",
}  # fmt: skip
RATIOS = {"3:1": (3, 1), "1:0": (1, 0), "0:1": (0, 1)}


@pytest.fixture
def tiny_config() -> Callable[..., SigmaConfig]:
    """A configuration of a few thousand parameters, unquantised unless said otherwise."""

    def make(**changes: Any) -> SigmaConfig:
        return SigmaConfig(**(TINY | changes))

    return make


@pytest.fixture
def tiny_model(tiny_config: Callable[..., SigmaConfig]) -> Callable[..., SigmaForCausalLM]:
    """A tiny model in evaluation mode, all of whose vectors and steering matrices were moved away from their start.

    At the start many mechanisms are switched off (lambda the same everywhere, all biases equal); a test of two equal
    paths would not see a difference in them.
    """

    def make(**changes: Any) -> SigmaForCausalLM:
        model = SigmaForCausalLM(tiny_config(**changes)).eval()
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for name, role in model.parameter_roles().items():
                if role in ("vector", "router"):
                    parameter = model.get_parameter(name)
                    parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        return model

    return make


@pytest.fixture(params=list(RATIOS), ids=[f"ratio {name}" for name in RATIOS])
def ratio(request: pytest.FixtureRequest) -> dict[str, int]:
    """The two ratio options: a mixed stack, only Mamba-3, only attention."""
    mamba, attention = RATIOS[request.param]
    return {"mamba_ratio": mamba, "attention_ratio": attention}


@pytest.fixture
def random_ids() -> Callable[..., Tensor]:
    """Token ids without the special ones."""

    def make(*shape: int, seed: int = 5, vocab: int = 64) -> Tensor:
        return torch.randint(3, vocab, shape, generator=torch.Generator().manual_seed(seed))

    return make
