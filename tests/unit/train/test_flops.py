"""Operations of a token, against a count by hand."""

from types import SimpleNamespace

import pytest
import torch

from sigma.train.flops import active_parameters, train_flops_per_token

CONFIG = {
    "tie_word_embeddings": True, "num_experts_per_tok": 2, "n_routed_experts": 8, "num_attention_heads": 3,
    "head_dim": 5, "rope_dim": 2, "ssm_num_heads": 7, "ssm_head_dim": 4, "ssm_state": 6, "mimo_rank": 2,
    "layer_types": [],
}  # fmt: skip
SIZES = {"embed": (10, 4), "proj": (3, 4), "fused": (5, 4), "stack": (8, 3, 4), "router": (8, 4), "norm": (4,)}
ROLES = {
    "embed": "embedding",
    "proj": "hidden",
    "fused": ("fused", (2, 3)),
    "stack": "experts",
    "router": "router",
    "norm": "vector",
}


def make(**changes: object) -> SimpleNamespace:
    parameters = [(name, torch.zeros(size)) for name, size in SIZES.items()]
    return SimpleNamespace(
        config=SimpleNamespace(**(CONFIG | changes)),
        named_parameters=lambda: parameters,
        parameter_roles=lambda: ROLES,
    )


def test_active_parameters_leave_the_experts_out_that_were_not_chosen() -> None:
    assert active_parameters(make()) == 40 + 12 + 20 + 96 // 4 + 32 + 4


def test_six_operations_for_each_active_matrix_parameter() -> None:
    matrices = 40 + 12 + 20 + 24 + 32
    assert train_flops_per_token(make(), 16) == 6 * matrices
    assert train_flops_per_token(make(tie_word_embeddings=False), 16) == 6 * (matrices - 40)


def test_attention_counts_the_keys_that_a_query_sees() -> None:
    plain, attention = make(), make(layer_types=["full_attention"])
    extra = train_flops_per_token(attention, 9) - train_flops_per_token(plain, 9)
    keys = sum(range(1, 10)) / 9  # query t sees t keys
    assert extra == pytest.approx(3 * (2 * 3) * keys * (2 * (5 + 2) + 2 * 5))


def test_the_scan_does_not_depend_on_the_length() -> None:
    plain, scan = make(), make(layer_types=["linear_attention"])
    extra = [train_flops_per_token(scan, n) - train_flops_per_token(plain, n) for n in (8, 800)]
    assert extra == [3 * 7 * 4 * 6 * (4 * 2 + 1)] * 2
