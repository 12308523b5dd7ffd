"""Every parameter goes to one optimizer, by its role."""

import pytest
import torch

from sigma.optim.routing import format_table, route

ROLES = {
    "proj": "hidden",
    "fused": ("fused", (4, 2)),
    "experts": "experts",
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


def test_muon_owns_hidden_matrices_and_adamw_the_rest() -> None:
    routes = {r.name: r for r in route(PARAMETERS, ROLES, "muon")}
    assert {name for name, r in routes.items() if r.owner == "muon"} == {"proj", "fused", "experts"}
    assert routes["fused"].splits == (4, 2)
    assert {name for name, r in routes.items() if r.hidden} == {"proj", "fused", "experts"}


def test_adamw_owns_everything_and_keeps_the_two_learning_rates() -> None:
    routes = {r.name: r for r in route(PARAMETERS, ROLES, "adamw")}
    assert {r.owner for r in routes.values()} == {"adamw"}
    assert {name for name, r in routes.items() if r.hidden} == {"proj", "fused", "experts"}


def test_vectors_and_embedding_are_not_decayed() -> None:
    routes = route(PARAMETERS, ROLES, "muon")
    assert {r.name for r in routes if not r.decayed} == {"embed", "norm"}


def test_table_counts_every_parameter_once() -> None:
    routes = route(PARAMETERS, ROLES, "muon")
    lines = format_table(routes, lr=4e-3, adam_lr=3e-3, weight_decay=0.1)
    counted = sum(int(line.split()[3].replace(",", "")) for line in lines[1:])
    assert counted == sum(p.numel() for p in PARAMETERS.values())
    assert any(line.split() == ["muon", "experts", "1", "24", "4.00e-03", "0.1"] for line in lines)


def test_a_parameter_without_role_is_refused() -> None:
    with pytest.raises(ValueError, match="without a role: norm"):
        route(PARAMETERS, {name: role for name, role in ROLES.items() if name != "norm"}, "muon")


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown role 'spine'"):
        route({"proj": PARAMETERS["proj"]}, {"proj": "spine"}, "muon")
