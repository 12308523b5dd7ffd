"""How many floating-point operations one training token needs: the numerator of model FLOP utilisation.

6 for each active matrix parameter (2 forward, 4 backward), and three times the forward operations of causal attention
and of the scan, counted as really needed: half of the score matrix, no recomputation, no chunk overhead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MATRIX_ROLES = frozenset({"hidden", "fused", "experts", "router", "head"})


def active_parameters(model: Any) -> int:
    """Parameters that one token uses: all, less the routed experts that were not chosen for it."""
    return sum(size for _, size in _active_sizes(model))


def train_flops_per_token(model: Any, seq_len: int) -> float:
    """Operations of one token in rows of `seq_len`, forward and backward."""
    multiplied = MATRIX_ROLES | ({"embedding"} if model.config.tie_word_embeddings else set())
    matrices = sum(size for role, size in _active_sizes(model) if role in multiplied)
    kinds = model.config.layer_types
    attention = kinds.count("full_attention") * _attention_forward(model.config, seq_len)
    scan = kinds.count("linear_attention") * _scan_forward(model.config)
    return 6.0 * matrices + 3.0 * (attention + scan)


def _active_sizes(model: Any) -> Iterator[tuple[str, int]]:
    """Role and active size of every parameter."""
    roles = model.parameter_roles()
    chosen, experts = model.config.num_experts_per_tok, model.config.n_routed_experts
    for name, parameter in model.named_parameters():
        role = roles[name] if isinstance(roles[name], str) else roles[name][0]
        size = parameter.numel()
        yield role, size * chosen // experts if role == "experts" else size


def _attention_forward(config: Any, seq_len: int) -> float:
    """Two maps per output head; a query sees (seq_len + 1) / 2 keys on average; a product and a sum each."""
    keys = (seq_len + 1) / 2
    per_key = 2 * (config.head_dim + config.rope_dim) + 2 * config.head_dim
    return 2 * config.num_attention_heads * keys * per_key


def _scan_forward(config: Any) -> float:
    """State update (rank R outer products and decay) and read-out of `[heads, head_dim, state]`."""
    state = config.ssm_num_heads * config.ssm_head_dim * config.ssm_state
    return state * (4 * config.mimo_rank + 1)
