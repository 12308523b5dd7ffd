"""What the tests of the decode step share: one step by a chosen backend, and how its results are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sigma_kernels import dispatch
from sigma_kernels.scan.op import mamba3_step
from sigma_kernels.scan.state import Mamba3State, Mimo
from tests.kernels.scan_cases import Case
from tests.kernels.tolerance import assert_close


def copy_of(state: Mamba3State, device: str | None = None) -> Mamba3State:
    """The same values and strides in other memory."""
    return Mamba3State(**{name: t.to(device or t.device, copy=True) for name, t in vars(state).items()})


def moved(case: Case, device: str, dtype: torch.dtype | None = None) -> Case:
    """The case on `device`; with `dtype`, every floating tensor in it."""

    def move(t: Any) -> Any:
        if isinstance(t, Mimo):
            return Mimo(*(move(part) for part in vars(t).values()))
        if not isinstance(t, Tensor):
            return t
        return t.to(device, dtype if t.is_floating_point() else None)

    return Case(
        {name: move(t) for name, t in case.inputs.items()},
        {name: move(t) for name, t in case.parameters.items()},
        Mamba3State(**{name: move(t) for name, t in vars(case.state).items()}),
    )


def step_with(backend: dispatch.Backend, case: Case, *, exact: bool = False, **options: Any) -> dict[str, Tensor]:
    """y and the state after the first step of the case, by name; `exact` converts everything to fp64 before."""
    if exact:
        case = moved(case, str(case.state.state_BHPN.device), torch.float64)
    state = copy_of(case.state)
    with dispatch.using(backend):
        y = mamba3_step(state, *(t[:, 0] for t in case.inputs.values()), **case.parameters, **options)
    return {"y": y, **vars(state)}


def assert_step(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """fp64 and 16-bit values within the table of tolerances; fp32 within 1e-5 by the norm, as the scan's gates are.

    (One element alone may lose more: k and x are products with the sine of an fp32 phase.) Phases bit for bit when both
    computed in the same precision; else an increment of some turns is off by the rounding of its factors, at most
    2^-20 of a turn here.
    """
    assert got.keys() == want.keys()
    for name, value in got.items():
        exact = want[name].to(value.device)
        if value.dtype == torch.float32:
            error = float((value.double() - exact.double()).norm() / exact.double().norm())
            assert error < 1e-5, f"{name}: relative error {error:.2e}"
        elif value.dtype != torch.int32:
            assert_close(name, value, exact.double())
        elif got["key_BRHN"].dtype == want["key_BRHN"].dtype:
            assert torch.equal(value, exact), name
        else:
            assert bool(((value - exact).abs() < 2**12).all()), name  # int32 wraps as the phase does
