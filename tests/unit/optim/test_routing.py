"""Every parameter goes to one optimizer with one rate, by its role."""

from typing import Any

import pytest
import torch

from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.optim.routing import Route, format_table, matrices_in, route

ROLES = {
    "proj": "hidden",
    "fused": ("fused", (4, 2)),
    "experts": ("experts", (2, 2)),
    "embed": "embedding",
    "head": "head",
    "router": "router",
    "norm": "vector",
}
PARAMETERS = {
    "proj": torch.zeros(4, 3),
    "fused": torch.zeros(6, 3),
    "experts": torch.zeros(2, 4, 3),
    "embed": torch.zeros(9, 3),
    "head": torch.zeros(9, 3),
    "router": torch.zeros(2, 3),
    "norm": torch.zeros(3),
}
HIDDEN = {"proj", "fused", "experts"}


def routes(optimizer: str = "muon", **flags: Any) -> dict[str, Route]:
    train = TrainSection(lr=4e-3, adam_lr=3e-3, optimizer=optimizer)  # pyright: ignore[reportArgumentType]
    return {r.name: r for r in route(PARAMETERS, ROLES, train, OptimSection(**flags))}


def test_the_matrix_optimizer_owns_hidden_matrices_and_adamw_the_rest() -> None:
    found = routes()
    assert {name for name, r in found.items() if r.owner == "matrix"} == HIDDEN
    assert found["fused"].splits == (4, 2)
    assert {name for name, r in found.items() if r.lr == 4e-3} == HIDDEN


def test_adamw_owns_everything_and_keeps_the_two_learning_rates() -> None:
    found = routes("adamw", muon_exclude_embeddings=False)
    assert {r.owner for r in found.values()} == {"adamw"}
    assert {name for name, r in found.items() if r.lr == 4e-3} == HIDDEN


@pytest.mark.parametrize(
    "flag, name",
    [("muon_exclude_embeddings", "embed"), ("muon_exclude_lm_head", "head"), ("muon_exclude_router", "router")],
)
def test_a_flag_includes_a_role_with_the_rate_of_the_matrices(flag: str, name: str) -> None:
    found = routes(**{flag: False})
    assert {n for n, r in found.items() if r.owner == "matrix"} == HIDDEN | {name}
    assert found[name].lr == 4e-3


def test_vectors_and_embedding_are_not_decayed() -> None:
    assert {name for name, r in routes().items() if r.weight_decay == 0} == {"embed", "norm"}


def test_each_role_has_a_scale_of_its_rate() -> None:
    scales = {"fused": 2.0, "expert": 3.0, "embedding": 4.0, "head": 5.0, "router": 6.0, "vector": 7.0}
    found = routes(**{f"{name}_lr_scale": scale for name, scale in scales.items()})
    assert {name: r.lr for name, r in found.items()} == pytest.approx(
        {"proj": 4e-3, "fused": 8e-3, "experts": 12e-3, "embed": 12e-3, "head": 15e-3, "router": 18e-3, "norm": 21e-3}
    )


def test_parts_and_experts_count_as_matrices() -> None:
    assert {name: matrices_in(r) for name, r in routes().items()} == {
        "proj": 1, "fused": 2, "experts": 4, "embed": 1, "head": 1, "router": 1, "norm": 0,
    }  # fmt: skip


def test_table_counts_every_parameter_once() -> None:
    lines = format_table(list(routes().values()), "muon")
    counted = sum(int(line.split()[4].replace(",", "")) for line in lines[1:])
    assert counted == sum(p.numel() for p in PARAMETERS.values())
    assert any(line.split() == ["muon", "experts", "1", "4", "24", "4.00e-03", "0.1"] for line in lines)


def test_a_parameter_without_role_is_refused() -> None:
    roles = {name: role for name, role in ROLES.items() if name != "norm"}
    with pytest.raises(ValueError, match="without a role: norm"):
        route(PARAMETERS, roles, TrainSection(lr=1e-3, adam_lr=1e-3), OptimSection())


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown role 'spine'"):
        route({"proj": PARAMETERS["proj"]}, {"proj": "spine"}, TrainSection(lr=1e-3, adam_lr=1e-3), OptimSection())
