"""The first thing that a start on a GPU says: whether real kernels, compiled here, compute what they should.

Triton needs a C module, an assembler and a driver that fit together. Whatever is wrong with them shows here, in seconds
and in one line, and not as a failure somewhere in the first step. Loops that are compiled wrongly are noticed, and run
without pipelines; the launches that `sigma tune` found are taken over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sigma.core.errors import MissingRequirementError

if TYPE_CHECKING:
    import torch

    from sigma.config.model import ModelSection
    from sigma_kernels.pipelining import Ops

ROWS, WIDTH, EPS, TOLERANCE = 64, 768, 1e-6, 1e-5


def kernel_lines(model: ModelSection) -> Iterator[str]:
    """What there is to say about the kernels of this start, as it becomes known; `model` is resolved.

    Raises MissingRequirementError.
    """
    import torch

    from sigma_kernels import dispatch

    yield check_kernel()
    device = torch.device("cuda", torch.cuda.current_device())
    if dispatch.why_not_triton(torch.empty(0, device=device)) is None:
        yield take_launches(device)  # first: the loops are checked as they will be launched
        yield check_pipelines(device, scan_sizes(model))


def scan_sizes(model: ModelSection) -> dict[str, int]:
    """What `pipelined_loops` compiles in, of a resolved model."""
    assert model.ssm_state is not None
    assert model.mimo_rank is not None
    sizes = {"head_size": model.ssm_head_dim, "state": model.ssm_state, "rank": model.mimo_rank}
    return sizes | {"pairs": model.rotating_pairs}


def check_pipelines(device: torch.device, sizes: Mapping[str, int]) -> str:
    """Compare pipelined loops with plain ones; the line that says so. Where they differ, none is pipelined.

    Raises MissingRequirementError when a loop cannot be compiled or launched.
    """
    import torch

    from sigma_kernels import pipelining
    from sigma_kernels.ahead import why_not_ahead
    from sigma_kernels.orthogonalise.pipelined import pipelined_loop
    from sigma_kernels.scan.pipelined import pipelined_loops

    begin = time.perf_counter()
    ops = {"scan": lambda: pipelined_loops(device, **sizes), "orthogonalise": lambda: pipelined_loop(device)}
    try:
        if why_not_ahead(device) is None:
            _compile_both_ways(ops, sizes)
        differing = pipelining.check(ops)
        torch.cuda.synchronize()
    except Exception as error:  # as in `check_kernel`
        raise _cannot_run(torch.cuda.get_device_name(), error) from error
    if differing:
        return f"kernels     pipelined loops of {' and '.join(differing)} compute wrong numbers here: none is pipelined"
    return f"kernels     pipelined loops agree with plain ones ({1e3 * (time.perf_counter() - begin):.0f} ms)"


def _compile_both_ways(ops: Ops, sizes: Mapping[str, int]) -> None:
    """Side by side, unless an earlier start has."""
    from sigma.train.kernel_stamp import KernelStamp
    from sigma_kernels import pipelining
    from sigma_kernels.ahead import KernelsAhead, cache_folder, facts_of_kernels

    stamp = KernelStamp(cache_folder(), {**facts_of_kernels(), "pipelines_of": dict(sizes)})
    if stamp.is_left():
        return
    with KernelsAhead() as kernels:
        with kernels.rehearsal():
            pipelining.both_ways(ops)
        kernels.wait()
    stamp.leave()


def take_launches(device: torch.device) -> str:
    """Take over the table of `sigma tune`, where there is one; the line that says which launches are in force."""
    from sigma_kernels import tuned
    from sigma_kernels.architecture import architecture
    from sigma_kernels.scan.triton_launch import MEASURED

    path, problem = Path(os.environ[tuned.VARIABLE]), ""
    try:
        if rows := tuned.load(path):
            return f"launches    tuned on this machine: {rows} rows of {path}"
    except tuned.TunedTableError as error:
        problem = f"{error}; "
    name = architecture(device)
    measured = "measured" if any(row[0] == name for row in MEASURED) else "unmeasured"
    return f"launches    {problem}built in, {measured} on {name}; `sigma tune` looks for faster ones"


def check_kernel() -> str:
    """Run the fused RMSNorm on the first CUDA device against its reference; the line that says so. It is not counted.

    Raises:
        MissingRequirementError: the kernel cannot be compiled or launched, or its result is wrong.
    """
    import torch

    from sigma_kernels import dispatch, triton_cache
    from sigma_kernels.rms_norm.reference import rms_norm_reference

    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    name = torch.cuda.get_device_name()
    reason = dispatch.why_not_triton(x.cuda())
    if reason is not None:
        return f"kernels     none of ours on {name}: {reason}; the slower references run"
    begin = time.perf_counter()
    try:
        triton_cache.apply_cache_folder(os.environ)
        from sigma_kernels.rms_norm.kernel import launch_forward

        found = launch_forward(x.cuda(), None, None, EPS)[0].cpu()
    except Exception as error:  # whatever Triton, the assembler or the driver raise: this start ends with their words
        raise _cannot_run(name, error) from error
    expected = rms_norm_reference(x, None, eps=EPS)
    if not isinstance(expected, torch.Tensor) or not torch.allclose(found, expected, atol=TOLERANCE):
        raise MissingRequirementError(
            f"a Triton kernel computes wrong numbers on {name}: update the driver, or train with `--device cpu`"
        )
    return f"kernels     a real one ran on {name} and was right ({time.perf_counter() - begin:.1f} s)"


def _cannot_run(name: str, error: Exception) -> MissingRequirementError:
    return MissingRequirementError(
        f"a Triton kernel cannot run on {name}: {type(error).__name__}: {error}. Run `sigma --selftest` and"
        " `sigma doctor` for the cause, or train with `--device cpu`"
    )
