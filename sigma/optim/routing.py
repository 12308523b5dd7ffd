"""Which optimizer owns each parameter and with which rate, decided by its role in the model and by nothing else.

A matrix that silently changes its optimizer is a common regression, so the whole table is shown (`format_table`) and
stored in the checkpoint (`table_of`, `refuse_other_table`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.core.errors import SigmaError

Owner = Literal["matrix", "adamw"]
Role = str | tuple[str, Sequence[int]]

HIDDEN_ROLES = frozenset({"hidden", "fused", "experts"})
DECAYED_ROLES = HIDDEN_ROLES | {"head", "router"}
ROLES = DECAYED_ROLES | {"embedding", "vector"}


@dataclass(frozen=True)
class Route:
    """One parameter: its owner, peak learning rate and weight decay; `splits` are the rows of a fused projection."""

    name: str
    shape: tuple[int, ...]
    role: str
    owner: Owner
    lr: float
    weight_decay: float
    splits: tuple[int, ...] = ()


def route(
    parameters: Mapping[str, Tensor], roles: Mapping[str, Role], train: TrainSection, optim: OptimSection
) -> list[Route]:
    """A route for every parameter.

    Hidden matrices (plain, fused, stacks of experts) belong to the matrix optimizer that `--optimizer` names;
    embedding, head and router where the flags include them; vectors never. AdamW owns the rest, or everything. Hidden
    matrices and whatever the matrix optimizer owns use `--lr`, the rest `--adam-lr`, times the scale of the role.
    Vectors and the embedding are not decayed. Raises ValueError when a parameter has no role, or a role is unknown.
    """
    if missing := sorted(parameters.keys() - roles.keys()):
        raise ValueError(f"parameters without a role: {', '.join(missing)}")
    return [_route_one(name, tensor, roles[name], train, optim) for name, tensor in parameters.items()]


def _route_one(name: str, tensor: Tensor, role: Role, train: TrainSection, optim: OptimSection) -> Route:
    kind, splits = (role, ()) if isinstance(role, str) else (role[0], tuple(role[1]))
    if kind not in ROLES:
        raise ValueError(f"parameter {name} has the unknown role {kind!r}; known are {', '.join(sorted(ROLES))}")
    if train.lr is None or train.adam_lr is None:
        raise ValueError("--lr and --adam-lr must be resolved before the optimizers are built")
    owned = train.optimizer != "adamw" and kind in owned_roles(optim)
    peak = train.lr if owned or kind in HIDDEN_ROLES else train.adam_lr
    return Route(
        name=name,
        shape=tuple(tensor.shape),
        role=kind,
        owner="matrix" if owned else "adamw",
        lr=peak * rate_scale(kind, optim),
        weight_decay=train.weight_decay if kind in DECAYED_ROLES else 0.0,
        splits=splits,
    )


def owned_roles(optim: OptimSection) -> set[str]:
    """The roles that a matrix optimizer owns."""
    excluded = {
        "embedding": optim.muon_exclude_embeddings,
        "head": optim.muon_exclude_lm_head,
        "router": optim.muon_exclude_router,
    }
    return set(HIDDEN_ROLES) | {role for role, out in excluded.items() if not out}


def rate_scale(role: str, optim: OptimSection) -> float:
    """What the flags multiply the learning rate of a role with."""
    return {
        "hidden": 1.0,
        "fused": optim.fused_lr_scale,
        "experts": optim.expert_lr_scale,
        "embedding": optim.embedding_lr_scale,
        "head": optim.head_lr_scale,
        "router": optim.router_lr_scale,
        "vector": optim.vector_lr_scale,
    }[role]


def format_table(routes: Sequence[Route], optimizer: str) -> list[str]:
    """Lines of text, one for each owner, role, rate and decay: how many tensors, matrices and parameters it holds."""
    groups: dict[tuple[str, str, float, float], list[Route]] = {}
    for r in routes:
        owner = optimizer if r.owner == "matrix" else "adamw"
        groups.setdefault((owner, r.role, r.lr, r.weight_decay), []).append(r)
    lines = [f"{'optimizer':<10}{'role':<11}{'tensors':>8}{'matrices':>9}{'parameters':>14}{'lr':>10}{'decay':>8}"]
    for (owner, role, rate, decay), members in sorted(groups.items()):
        size = sum(math.prod(r.shape) for r in members)
        matrices = sum(matrices_in(r) for r in members)
        lines.append(f"{owner:<10}{role:<11}{len(members):>8}{matrices:>9}{size:>14,}{rate:>10.2e}{decay:>8.3g}")
    return lines


def matrices_in(route: Route) -> int:
    """Logical matrices of a parameter: the parts of a fused projection, of each expert; 0 for a vector."""
    if route.role == "vector":
        return 0
    return max(1, len(route.splits)) * (route.shape[0] if len(route.shape) == 3 else 1)


def table_of(routes: Sequence[Route]) -> dict[str, Any]:
    """The table as JSON, for the checkpoint: owner, role and splits by name. Rates may change between two starts."""
    return {r.name: [r.owner, r.role, *r.splits] for r in routes}


def refuse_other_table(stored: Mapping[str, Any], routes: Sequence[Route]) -> None:
    """Raise SigmaError when a checkpoint's table gives a parameter to another optimizer or cuts it differently."""
    now = table_of(routes)
    names = [name for name in sorted(stored.keys() | now.keys()) if stored.get(name) != now.get(name)]
    if names:
        first = names[0]
        raise SigmaError(
            f"the checkpoint was trained with another routing table: {first} was {stored.get(first, 'not there')} and"
            f" is {now.get(first, 'not there')} now ({len(names)} parameters differ); continue with the --optimizer and"
            " --muon-exclude-... flags that the run was started with, or use another --output-dir"
        )
