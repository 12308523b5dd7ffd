"""The optimizers of a run as one object: one step, one schedule, one set of named state tensors, one routing table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.core.errors import SigmaError
from sigma.optim.adamuon import AdaMuon
from sigma.optim.blocks import SEPARATOR
from sigma.optim.c3o import C3O
from sigma.optim.gnprox import GNProx
from sigma.optim.graphed_step import GraphedStep, OnEvent
from sigma.optim.matrix import Direction, MakeDirection, MatrixOptimizer
from sigma.optim.muon import Muon
from sigma.optim.normuon import NorMuon
from sigma.optim.routing import Role, Route, format_table, refuse_other_table, route, table_of
from sigma.optim.soapmuon import SoapMuon

DIRECTIONS: dict[str, MakeDirection] = {"muon": Muon, "normuon": NorMuon, "adamuon": AdaMuon}
"""`--optimizer` -> the direction of its hidden matrices. AdamW has none."""

CURVED_DIRECTIONS: dict[str, Callable[[OptimSection, CurvatureSection], Direction]] = {
    "soapmuon": SoapMuon,
    "gnprox": GNProx,
}
"""Those with statistics of a curvature. `c3o` is one of either kind, shared out by credit."""

ADAM_SLOTS = ("step", "exp_avg", "exp_avg_sq")


class OptimizerSet:
    """A matrix optimizer and AdamW, or AdamW alone, over the parameters of one model."""

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        routes: Sequence[Route],
        matrix: MatrixOptimizer | None,
        adamw: torch.optim.AdamW | None,
        name: str,
        *,
        graph: bool = False,
    ) -> None:
        self.parameters, self.routes, self.name = dict(parameters), list(routes), name
        self.matrix, self.adamw = matrix, adamw
        self.graphed = None if matrix is None else GraphedStep(matrix, wanted=graph)

    def set_scale(self, scale: float) -> None:
        """Set every learning rate to `scale` times its peak."""
        if self.matrix is not None:
            self.matrix.set_scale(scale)
        for group in self.adamw.param_groups if self.adamw is not None else ():
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(scale * group["peak_lr"])
            else:
                group["lr"] = scale * group["peak_lr"]

    def step(self, found_inf: Tensor, clip: Tensor | None = None) -> None:
        """Update everything, or nothing when the device scalar `found_inf` is 1 (decided on the device, no wait).

        `clip` is what the gradients have been multiplied with to bound their norm.
        """
        if self.graphed is not None:
            self.graphed.step(found_inf, clip)
        if self.adamw is not None:
            self.adamw.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
            self.adamw.step()

    def why_no_graph(self) -> str | None:
        """Why no step will come from a CUDA graph, as far as that is known before the first one; None if they will."""
        return "there is no matrix optimizer" if self.graphed is None else self.graphed.why_never()

    def listen(self, on_event: OnEvent) -> None:
        """Hear of reasons that keep steps from coming from a CUDA graph."""
        if self.graphed is not None:
            self.graphed.listen(on_event)

    def release_graphs(self) -> bool:
        """Let go of the memory of CUDA graphs, for good; whether there was any."""
        return self.graphed is not None and self.graphed.release()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def table(self) -> list[str]:
        """The routing table as lines of text."""
        return format_table(self.routes, self.name)

    def metrics(self) -> dict[str, Tensor | float]:
        """What the matrix optimizer reports; device scalars are not read here."""
        return {} if self.graphed is None else self.graphed.metrics()

    def state_dict(self) -> dict[str, Any]:
        """The routing table, and how many steps the matrix optimizer has counted."""
        return {"routing": table_of(self.routes), "steps": 0 if self.matrix is None else self.matrix.steps}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise SigmaError, before anything is restored, when a checkpoint has another routing table."""
        refuse_other_table(state["routing"], self.routes)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self.check_state(state)
        if self.matrix is not None:
            self.matrix.steps = state["steps"]

    def tensors(self) -> dict[str, Tensor]:
        """State tensors (not copied) under `<parameter name>|<slot>`; empty before the first step."""
        found = {} if self.matrix is None else self.matrix.tensors()
        if self.adamw is not None:
            names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
            for parameter, slots in self.adamw.state.items():
                found |= {f"{names[parameter]}{SEPARATOR}{slot}": value for slot, value in slots.items()}
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned. Raises SigmaError for a parameter or slot of another model or optimizer."""
        owned = {r.name for r in self.routes if r.owner == "matrix"}
        mine = {key: value for key, value in tensors.items() if key.rpartition(SEPARATOR)[0] in owned}
        adam: dict[Parameter, dict[str, Tensor]] = {}
        for key in tensors.keys() - mine.keys():
            name, _, slot = key.rpartition(SEPARATOR)
            value, parameter = tensors[key], self.parameters.get(name)
            if parameter is None or slot not in ADAM_SLOTS:
                raise SigmaError(
                    f"the checkpoint's optimizer state {key!r} does not belong to this model and --optimizer;"
                    " continue the run with the options it was started with, or use another --output-dir"
                )
            if slot != "step" and value.shape != parameter.shape:
                raise SigmaError(
                    f"the checkpoint's optimizer state {key!r} has shape {tuple(value.shape)}, the model"
                    f" {tuple(parameter.shape)}; continue the run with the sizes it was started with"
                )
            adam.setdefault(parameter, {})[slot] = value.to(parameter.device, copy=True)
        if self.matrix is not None:
            self.matrix.load_tensors(mine)
        if self.adamw is not None:
            self.adamw.state.clear()
            for parameter, slots in adam.items():
                self.adamw.state[parameter] = slots


def build_optimizers(
    parameters: Mapping[str, Parameter],
    roles: Mapping[str, Role],
    train: TrainSection,
    optim: OptimSection,
    curvature: CurvatureSection,
    c3o: C3OSection,
) -> OptimizerSet:
    """Route the parameters by role and build what `--optimizer` asks for. Raises ValueError for a missing role."""
    routes = route(parameters, roles, train, optim)
    owned, rest = ([r for r in routes if r.owner == owner] for owner in ("matrix", "adamw"))
    matrix = None
    if owned:
        base = c3o.c3o_base if train.optimizer == "c3o" else train.optimizer
        allocation = C3O(c3o) if c3o.c3o_credit_enabled else None
        matrix = MatrixOptimizer(parameters, owned, _direction(base, optim, curvature), optim, allocation)
    adamw = _adamw(parameters, rest, optim) if rest else None
    return OptimizerSet(parameters, routes, matrix, adamw, train.optimizer, graph=optim.optim_graph)


def _direction(name: str, optim: OptimSection, curvature: CurvatureSection) -> Direction:
    if name in CURVED_DIRECTIONS:
        return CURVED_DIRECTIONS[name](optim, curvature)
    return DIRECTIONS[name](optim)


def _adamw(parameters: Mapping[str, Parameter], routes: Sequence[Route], optim: OptimSection) -> torch.optim.AdamW:
    members: dict[tuple[float, float], list[Parameter]] = {}
    for r in routes:
        members.setdefault((r.lr, r.weight_decay), []).append(parameters[r.name])
    cuda = any(p.is_cuda for group in members.values() for p in group)
    groups = [
        # a rate on the device can change between the replays of a CUDA graph
        {"params": group, "weight_decay": decay, "lr": torch.tensor(lr).cuda() if cuda else lr, "peak_lr": lr}
        for (lr, decay), group in members.items()
    ]
    betas = (optim.adam_beta1, optim.adam_beta2)
    # fused: one pass over the state, and it can be told on the device to leave everything as it is
    return torch.optim.AdamW(groups, betas=betas, eps=optim.adam_eps, fused=True, capturable=cuda)
