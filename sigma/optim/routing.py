"""Which optimizer owns each parameter, decided by its role in the model and by nothing else.

A matrix that silently changes its optimizer is a common regression, so the whole table can be shown (`format_table`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Owner = Literal["muon", "adamw"]
Role = str | tuple[str, Sequence[int]]

HIDDEN_ROLES = frozenset({"hidden", "fused", "experts"})
DECAYED_ROLES = HIDDEN_ROLES | {"head", "router"}
ROLES = DECAYED_ROLES | {"embedding", "vector"}


@dataclass(frozen=True)
class Route:
    """One parameter: `splits` are the rows of a fused projection's parts, `decayed` is about weight decay."""

    name: str
    shape: tuple[int, ...]
    role: str
    owner: Owner
    hidden: bool
    decayed: bool
    splits: tuple[int, ...] = ()


def route(parameters: Mapping[str, Tensor], roles: Mapping[str, Role], optimizer: Owner) -> list[Route]:
    """A route for every parameter. `muon` gives hidden matrices to Muon and the rest to AdamW; `adamw` takes all.

    Hidden matrices use `--lr` with either optimizer, everything else `--adam-lr`. Norms, biases, other vectors and
    the embedding are not decayed. Raises ValueError when a parameter has no role, or a role is unknown.
    """
    if missing := sorted(parameters.keys() - roles.keys()):
        raise ValueError(f"parameters without a role: {', '.join(missing)}")
    return [_route_one(name, tensor, roles[name], optimizer) for name, tensor in parameters.items()]


def _route_one(name: str, tensor: Tensor, role: Role, optimizer: Owner) -> Route:
    kind, splits = (role, ()) if isinstance(role, str) else (role[0], tuple(role[1]))
    if kind not in ROLES:
        raise ValueError(f"parameter {name} has the unknown role {kind!r}; known are {', '.join(sorted(ROLES))}")
    hidden = kind in HIDDEN_ROLES
    return Route(
        name=name,
        shape=tuple(tensor.shape),
        role=kind,
        owner="muon" if hidden and optimizer == "muon" else "adamw",
        hidden=hidden,
        decayed=kind in DECAYED_ROLES,
        splits=splits,
    )


def format_table(routes: Sequence[Route], lr: float, adam_lr: float, weight_decay: float) -> list[str]:
    """Lines of text, one per (owner, role, learning rate, decay): how many tensors and parameters it holds."""
    groups: dict[tuple[str, str, float, float], list[Route]] = {}
    for r in routes:
        key = (r.owner, r.role, lr if r.hidden else adam_lr, weight_decay if r.decayed else 0.0)
        groups.setdefault(key, []).append(r)
    lines = [f"{'optimizer':<10}{'role':<11}{'tensors':>8}{'parameters':>14}{'lr':>10}{'decay':>8}"]
    for (owner, role, rate, decay), members in sorted(groups.items()):
        size = sum(_numel(r.shape) for r in members)
        lines.append(f"{owner:<10}{role:<11}{len(members):>8}{size:>14,}{rate:>10.2e}{decay:>8.3g}")
    return lines


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
