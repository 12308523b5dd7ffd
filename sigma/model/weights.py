"""The initial value of every parameter, and its role for the optimizers.

Every module draws from its own stream, seeded by `config.init_seed` and its name: the same seed gives the same weights
whatever was built before, and another layer changes no layer that is there already.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from sigma.model.bitlinear import BitLinear, QuantizedWeight
from sigma.model.configuration import SigmaConfig
from sigma.model.mamba3 import Mamba3Mixer
from sigma.model.moe import ExpertLinear
from sigma.model.norm import RMSNorm
from sigma.model.router import Router

LOGIT_STD = 0.3
"""Standard deviation of a logit at the start: the loss begins near ln(V) + LOGIT_STD**2 / 2, within 1 % of uniform."""

STEERING = frozenset({"control_proj", "lambda_proj"})
"""Plain projections whose few outputs steer a mixer; an orthogonalised update would treat them as a hidden matrix."""


MOST_THREADS = 16

_submit: ContextVar[Callable[..., None] | None] = ContextVar("submit", default=None)


@contextmanager
def parallel_draws() -> Iterator[None]:
    """Inside, `initialize` returns at once and the values are drawn over all cores; at the end all are there.

    Every module has a stream of its own, so that the values are those of one thread. Drawing 1e8 of them takes 0.7 s.
    A draw may come when transformers has put torch's functions back already, so it uses `transformers.initialization`,
    which leaves what was loaded from a file.
    """
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS), "initial values") as pool:
        draws: list[Future[None]] = []

        def submit(*call: Any) -> None:
            draws.append(pool.submit(*call))

        token = _submit.set(submit)
        try:
            yield
        finally:
            _submit.reset(token)
        for draw in draws:
            draw.result()


def name_module(module: nn.Module, name: str) -> None:
    """Tell `module` the name that seeds its initial values. Call it before `post_init`."""
    module.__dict__["init_name"] = name


def initialize(module: nn.Module, config: SigmaConfig) -> None:
    """Draw the parameters that `module` itself owns; transformers calls this where one was not loaded from a file."""
    submit = _submit.get()
    if submit is None:
        _draw(module, config)
    else:
        submit(_draw, module, config)


def _draw(module: nn.Module, config: SigmaConfig) -> None:
    if isinstance(module, nn.Embedding | nn.Linear):  # embedding and head
        init.normal_(module.weight, std=LOGIT_STD * config.hidden_size**-0.5, generator=_generator(module, config))
    elif isinstance(module, RMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, QuantizedWeight | Router | Mamba3Mixer):
        module.reset_parameters(_generator(module, config))


def _generator(module: nn.Module, config: SigmaConfig) -> torch.Generator:
    digest = hashlib.sha256(f"{config.init_seed}:{module.__dict__['init_name']}".encode()).digest()
    device = next(module.parameters()).device
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def parameter_roles(model: nn.Module) -> dict[str, str | tuple[str, Sequence[int]]]:
    """Role of every parameter of `model.named_parameters()`.

    `hidden` is a matrix between hidden activations, `fused` one that holds several (with their rows), `experts` a stack
    of them, `embedding` and `head` what their names say, `router` a small matrix that steers (routing, lambda, and the
    time step, decay, trapezoid and angle of the scan), `vector` everything that is not a matrix product.
    """
    modules = dict(model.named_modules())
    roles = {}
    for name, _ in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        roles[name] = _role(modules[owner], owner.rpartition(".")[2], leaf)
    return roles


def _role(module: nn.Module, module_name: str, leaf: str) -> str | tuple[str, Sequence[int]]:
    if leaf != "weight":
        return "vector"
    match module:
        case nn.Embedding():
            return "embedding"
        case nn.Linear():
            return "head"
        case Router():
            return "router"
        case ExpertLinear() if module_name == "up":  # gate and value of the gated unit
            return "experts", (module.weight.shape[1] // 2,) * 2
        case ExpertLinear():
            return "experts"
        case BitLinear() if module_name in STEERING:
            return "router"
        case BitLinear():
            return ("fused", module.splits) if module.splits else "hidden"
        case _:
            return "vector"
