"""`sigma tune`: times the launches of the kernels that a run would use, and keeps the fastest for later starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch

from sigma.config.root import RunConfig
from sigma.core.errors import ConfigError, MissingRequirementError
from sigma.data.tokenizer import load_tokenizer
from sigma.model.configuration import SigmaConfig, sigma_config_from
from sigma.model.modeling import SigmaForCausalLM
from sigma.optim.routing import Route, route
from sigma_kernels import dispatch, tuned
from sigma_kernels.orthogonalise.tunable import orthogonalise_tunable
from sigma_kernels.scan.tunable import scan_tunable
from sigma_kernels.tuning import Clock, Tunable, device_ms, search_all

TOKENS = 1 << 15  # of a batch, where the configuration leaves its size open
MOST_ELEMENTS = 1 << 25  # of a batch of matrices


def tune(
    makes: Sequence[Callable[[], Tunable]],
    table: Path,
    minutes: float,
    say: Callable[[str], None],
    clock: Clock = device_ms,
) -> None:
    """Search each op, at most `minutes` in all. Raises ConfigError when the table cannot be written."""
    try:
        tuned.save(table, {})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{tuned.VARIABLE}: cannot write {table} ({error}); name another file") from error
    enough = search_all(makes, table, minutes, say, clock)
    rest = "" if enough else f"; the {minutes:g} minutes are over, not every candidate was tried"
    say(f"later starts use {table}{rest}")


def tunables_of(config: RunConfig, device: torch.device) -> list[Callable[[], Tunable]]:
    """What the training of a resolved configuration launches most: the scan, and the optimizer's symmetric products.

    Each is made, with its tensors, when its turn comes.

    Raises MissingRequirementError where no kernel of ours runs.
    """
    if (reason := dispatch.why_not_triton(torch.empty(0, device=device))) is not None:
        raise MissingRequirementError(f"there are no launches to tune: {reason}")
    model_config = sigma_config_from(config, load_tokenizer(config.data.tokenizer).vocab_size)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    shapes = [] if config.train.optimizer == "adamw" else matrix_shapes(_routes(config, model_config))
    products = [partial(orthogonalise_tunable, *shape, device) for shape in shapes]
    return [partial(_scan, config, model_config, dtype, device), *products]


def _scan(config: RunConfig, model: SigmaConfig, dtype: torch.dtype, device: torch.device) -> Tunable:
    steps = config.data.seq_len or 1
    batch = config.data.micro_batch_size or max(1, TOKENS // steps)
    return scan_tunable(
        (batch, steps, model.ssm_num_heads, model.ssm_head_dim),
        state=model.ssm_state,
        rank=model.mimo_rank,
        groups=model.ssm_groups,
        pairs=model.ssm_rotating_pairs,
        norm=model.ssm_pre_gate_norm,
        dtype=dtype,
        device=device,
    )


def _routes(config: RunConfig, model_config: SigmaConfig) -> list[Route]:
    with torch.device("meta"):
        model = SigmaForCausalLM(model_config)
    return route(dict(model.named_parameters()), model.parameter_roles(), config.train, config.optim)


def matrix_shapes(routes: Iterable[Route]) -> list[tuple[int, int, int]]:
    """(count, rows, columns) with rows <= columns of the matrices that are orthogonalised.

    Of all with equally many rows, up to a power of two, those with the most elements.
    """
    counts: dict[tuple[int, int], int] = {}
    for r in routes:
        if r.owner != "matrix":
            continue
        experts, (height, width) = (r.shape[0] if len(r.shape) == 3 else 1), r.shape[-2:]
        for part in r.splits or (height,):
            rows, columns = sorted((part, width))
            counts[rows, columns] = counts.get((rows, columns), 0) + experts
    largest: dict[int, tuple[int, int, int]] = {}
    for (rows, columns), count in sorted(counts.items(), key=lambda item: item[1] * item[0][0] * item[0][1]):
        most = max(1, MOST_ELEMENTS // (rows * columns))
        largest[(rows - 1).bit_length()] = (min(count, most), rows, columns)
    return [largest[size] for size in sorted(largest)]
