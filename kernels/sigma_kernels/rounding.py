"""Rounding to integers on the device, to the nearest even and without a conversion."""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

# 1.5 * 2^23: a small number added to it is rounded, and the low bits of the sum are that integer. Where the number is a
# product, the two must not be fused, which would break other ties.
ROUND = tl.constexpr(12582912.0)


@triton.jit
def rounded(x):
    """x of at most 2^22 as an integer, in fp32."""
    return (x + ROUND) - ROUND


@triton.jit
def rounded_int8(x):
    """x within [-128, 127] as int8."""
    return (x + ROUND).to(tl.int32, bitcast=True).to(tl.int8)
