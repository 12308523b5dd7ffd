"""The first thing that a start on a GPU says: whether a real kernel, compiled here, computes what it should.

Triton needs a C module, an assembler and a driver that fit together. Whatever is wrong with them shows here, in seconds
and in one line, and not as a failure somewhere in the first step.
"""

from __future__ import annotations

import os
import time

from sigma.core.errors import MissingRequirementError

ROWS, WIDTH, EPS, TOLERANCE = 64, 768, 1e-6, 1e-5


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
        raise MissingRequirementError(
            f"a Triton kernel cannot run on {name}: {type(error).__name__}: {error}. Run `sigma --selftest` and"
            " `sigma doctor` for the cause, or train with `--device cpu`"
        ) from error
    expected = rms_norm_reference(x, None, eps=EPS)
    if not isinstance(expected, torch.Tensor) or not torch.allclose(found, expected, atol=TOLERANCE):
        raise MissingRequirementError(
            f"a Triton kernel computes wrong numbers on {name}: update the driver, or train with `--device cpu`"
        )
    return f"kernels     a real one ran on {name} and was right ({time.perf_counter() - begin:.1f} s)"
