"""How far the scan's kernels may be from the fp64 reference of the same inputs: the relative norm, by quantity.

16-bit inputs: one rounding of y is already 1.7e-3. The official kernels' own tests allow 5e-2 to 1e-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

GATES_16 = {
    "y": 3e-3,
    "d x_BTHP": 5e-3,
    "d z_BTHP": 5e-3,
    "d in_BTRGN": 6e-3,
    "d out_BTRGN": 6e-3,
    "d in_bias_HRN": 6e-3,
    "d out_bias_HRN": 6e-3,
}
OTHER_16 = 1e-2
VALUE_32, GRADIENT_32 = 1e-5, 5e-5
NOTHING = 1e-12
ROUNDED = (torch.bfloat16, torch.float16)


def gate(name: str, dtype: torch.dtype) -> float:
    """The largest relative error of a quantity for inputs of `dtype`."""
    if dtype in ROUNDED:
        return GATES_16.get(name, OTHER_16)
    return GRADIENT_32 if name.startswith("d ") else VALUE_32


def relative_error(got: Tensor, exact: Tensor) -> float:
    """|got - exact| / |exact|; below NOTHING the exact value is the rounding of a zero, and the difference counts.

    NaN stays NaN.
    """
    size, difference = (t.norm().item() for t in (exact.double(), got.double() - exact.double().to(got.device)))
    return difference / size if size > NOTHING else difference


def assert_within_gates(got: dict[str, Tensor], exact: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    """Fail and name every quantity outside its gate; an int32 phase may be off by the rounding of dt alone."""
    assert got.keys() == exact.keys()
    errors = {}
    for name, value in got.items():
        assert value.shape == exact[name].shape, name
        if value.dtype == torch.int32:  # turns: the difference wraps
            turns = (value.long() - exact[name].long().to(value.device) + 2**31) % 2**32 - 2**31
            assert turns.numel() == 0 or turns.abs().max().item() < 2**32 * 1e-5, name
            continue
        error = relative_error(value, exact[name])
        if not error <= gate(name, dtype):
            errors[name] = f"{error:.2e} > {gate(name, dtype):.0e}"
    assert not errors, errors
