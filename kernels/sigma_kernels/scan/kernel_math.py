"""Device functions of the scan's kernels: what decides the phase must be the same to the last bit in all of them.

torch evaluates exp, log1p and tanh on CUDA by the functions of libdevice, so the kernels call the same ones; Triton's
own `tl.exp` is an approximation that would give other increments. The interpreter has no libdevice: there, and only
there, formulas stand in for it.
"""

# The device code is a language of its own, which the type checker takes for Python.
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportOperatorIssue=false

from __future__ import annotations

import math

import triton
import triton.language as tl
from triton.language.extra import libdevice

from sigma_kernels import dispatch

LIBDEVICE = tl.constexpr(not dispatch.interpreting())
# softplus(x) = x above, as in torch.nn.functional.softplus
LINEAR_FROM = tl.constexpr(20.0)
RADIANS_PER_COUNT = tl.constexpr(2 * math.pi / 2**32)


@triton.jit
def softplus(x):
    """log(1 + e^x)."""
    if LIBDEVICE:
        y = libdevice.log1p(libdevice.exp(x))
    else:
        # log1p(e) = log(1 + e) e / ((1 + e) - 1): the error of the first sum cancels
        e = tl.exp(tl.minimum(x, LINEAR_FROM))
        u = 1 + e
        y = tl.where(u == 1, e, tl.log(u) * e / tl.where(u == 1, 1, u - 1))
    return tl.where(x > LINEAR_FROM, x, y)


@triton.jit
def tanh(x):
    if LIBDEVICE:
        y = libdevice.tanh(x)
    else:
        e = tl.exp(-2 * tl.abs(x))
        y = (1 - e) / (1 + e)
        y = tl.where(x < 0, -y, y)
    return y


@triton.jit
def exp2(x):
    """2^x within 2^-22, in one instruction: results below 2^-126 become 0 in place of a detour for them."""
    if LIBDEVICE:
        y = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        y = tl.exp2(x)
    return y


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x) within 2^-21."""
    below = 1.0 + exp2(x * -1.4426950408889634)
    if LIBDEVICE:
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [below], tl.float32, is_pure=True, pack=1)
    else:
        y = 1.0 / below
    return y


@triton.jit
def sigmoid_for_16_bits(x):
    """`sigmoid` within 2^-12 in one instruction, half of tanh(x / 2) and a half: what 16-bit numbers leave of it."""
    if LIBDEVICE:
        y = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], tl.float32, is_pure=True, pack=1)
        y = 0.5 + 0.5 * y
    else:
        y = sigmoid(x)
    return y


@triton.jit
def heavy_tail(a):
    """1 + a for a >= 0, 1 / (1 - a) below, at least 1e-4."""
    return tl.maximum(tl.where(a >= 0, 1 + a, 1 / (1 - tl.minimum(a, 0.0))), 1e-4)


@triton.jit
def counts_to_int32(counts):
    """Multiples of 2^-32 turn (fp32 or fp64) as int32: rounded half to even, then wrapped modulo one turn.

    One instruction rounds to 64 bits, of which the lower half is the wrapped count.
    """
    if LIBDEVICE:
        if counts.dtype == tl.float64:
            integers = tl.inline_asm_elementwise("cvt.rni.s64.f64 $0, $1;", "=l,d", [counts], tl.int64, True, 1)
        else:
            integers = tl.inline_asm_elementwise("cvt.rni.s64.f32 $0, $1;", "=l,f", [counts], tl.int64, True, 1)
    else:
        # adding and taking away 1.5 * 2^52 rounds half to even below 2^51; from there on every fp32 is an integer
        shift: tl.constexpr = 6755399441055744.0
        wide = counts.to(tl.float64)
        integers = tl.where(tl.abs(wide) < 2251799813685248.0, (wide + shift) - shift, wide).to(tl.int64)
    return integers.to(tl.int32)


@triton.jit
def turns_to_int32(turns):
    """Turns (fp32 or fp64) as int32 multiples of 2^-32 turn; scaling by a power of two is exact."""
    return counts_to_int32(turns * 4294967296.0)


@triton.jit
def cos_sin(phase, ACC: tl.constexpr):
    """(cos, sin) of int32 turns. The quadrant is taken off in integers, so that no large angle loses digits.

    fp32: polynomials of the Cephes library on [-pi/4, pi/4], within 1e-7; they need no slow path for large arguments.
    """
    if tl.float64 == ACC:
        angle = phase.to(tl.float64) * RADIANS_PER_COUNT
        cos = tl.cos(angle)
        sin = tl.sin(angle)
    else:
        quadrant = (phase + 536870912) >> 30  # the sum may wrap: only the two lowest bits count
        x = (phase - (quadrant << 30)).to(tl.float32) * RADIANS_PER_COUNT
        z = x * x
        s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * x + x
        c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
        swap = (quadrant & 1) == 1
        cos = tl.where(swap, s, c)
        sin = tl.where(swap, c, s)
        cos = tl.where(((quadrant + 1) & 2) == 2, -cos, cos)
        sin = tl.where((quadrant & 2) == 2, -sin, sin)
    return cos, sin
