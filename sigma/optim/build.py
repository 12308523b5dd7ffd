"""The optimizers of a run as one object: one step, one schedule, one set of named state tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from sigma.config.train import TrainSection
from sigma.core.errors import SigmaError
from sigma.optim.muon import MuonBlocks
from sigma.optim.routing import Role, Route, format_table, route

ADAM_BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8
MUON_MOMENTUM = 0.95
SEPARATOR = "|"  # between parameter name and slot; no parameter name holds it


class OptimizerSet:
    """AdamW, or Muon and AdamW, over the parameters of one model."""

    def __init__(self, parameters: Mapping[str, Parameter], routes: Sequence[Route], train: TrainSection) -> None:
        if train.lr is None or train.adam_lr is None:
            raise ValueError("--lr and --adam-lr must be resolved before the optimizers are built")
        self.parameters = dict(parameters)
        self.routes = list(routes)
        self._peaks = (train.lr, train.adam_lr, train.weight_decay)
        self.optimizers: list[MuonBlocks | torch.optim.AdamW] = []
        if groups := self._groups("muon"):
            self.optimizers.append(MuonBlocks(groups, momentum=MUON_MOMENTUM))
        if groups := self._groups("adamw"):
            # fused: one pass over the state, and it can be told on the device to leave everything as it is
            self.optimizers.append(torch.optim.AdamW(groups, betas=ADAM_BETAS, eps=ADAM_EPS, fused=True))

    def _groups(self, owner: str) -> list[dict]:
        lr, adam_lr, decay = self._peaks
        members: dict[tuple[float, float], list[Route]] = {}
        for r in self.routes:
            if r.owner == owner:
                members.setdefault((lr if r.hidden else adam_lr, decay if r.decayed else 0.0), []).append(r)
        groups = []
        for (peak, weight_decay), routes in members.items():
            group = {"params": [self.parameters[r.name] for r in routes], "weight_decay": weight_decay}
            group |= {"lr": peak, "peak_lr": peak}
            groups.append(group | {"splits": [r.splits for r in routes]} if owner == "muon" else group)
        return groups

    def set_scale(self, scale: float) -> None:
        """Set every learning rate to `scale` times its peak."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak_lr"]

    def step(self, found_inf: Tensor) -> None:
        """Update everything, or nothing when the device scalar `found_inf` is 1 (decided on the device, no wait)."""
        for optimizer in self.optimizers:
            optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def table(self) -> list[str]:
        """The routing table as lines of text."""
        return format_table(self.routes, *self._peaks)

    def tensors(self) -> dict[str, Tensor]:
        """State tensors (not copied) under `<parameter name>|<slot>`; empty before the first step."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        return {
            f"{names[parameter]}{SEPARATOR}{slot}": value
            for optimizer in self.optimizers
            for parameter, slots in optimizer.state.items()
            for slot, value in slots.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned. Raises SigmaError for a parameter or slot of another model or optimizer."""
        owners = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        loaded: dict[Parameter, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            name, _, slot = key.rpartition(SEPARATOR)
            parameter = self.parameters.get(name)
            if parameter is None or slot not in _slots(owners[parameter]):
                raise SigmaError(
                    f"the checkpoint's optimizer state {key!r} does not belong to this model and --optimizer;"
                    " continue the run with the options it was started with, or use another --output-dir"
                )
            if slot != "step" and value.shape != parameter.shape:
                raise SigmaError(
                    f"the checkpoint's optimizer state {key!r} has shape {tuple(value.shape)}, the model"
                    f" {tuple(parameter.shape)}; continue the run with the sizes it was started with"
                )
            loaded.setdefault(parameter, {})[slot] = value.to(parameter.device, copy=True)
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for parameter, slots in loaded.items():
            owners[parameter].state[parameter] = slots


def _slots(optimizer: MuonBlocks | torch.optim.AdamW) -> tuple[str, ...]:
    return ("momentum_buffer",) if isinstance(optimizer, MuonBlocks) else ("step", "exp_avg", "exp_avg_sq")


def build_optimizers(
    parameters: Mapping[str, Parameter], roles: Mapping[str, Role], train: TrainSection
) -> OptimizerSet:
    """Route the parameters by role and build what `--optimizer` asks for. Raises ValueError for a missing role."""
    return OptimizerSet(parameters, route(parameters, roles, train.optimizer), train)
