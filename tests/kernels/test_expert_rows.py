"""Dot products of rows and sums of the rows of a token: what the kernels take, and that they spill nothing."""

from __future__ import annotations

import re

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.ahead import KernelsAhead
from sigma_kernels.experts.rows import row_dots, sum_choices
from sigma_kernels.row_tiles import row_tile
from tests.kernels.compile_only import EVERY_CAPABILITY, assert_lean, compile_kernel
from tests.kernels.fake_gpu import fake_gpu
from tests.kernels.row_cases import expert_step, normal, same_bits, shuffled

MOST_REGISTERS = 80  # of a thread: 24 resident warps per multiprocessor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_sum_of_choices_is_that_of_a_loop_rounded_once(dtype):
    y, factor = normal(6, 5, dtype=torch.bfloat16).to(dtype), normal(6, seed=1).to(dtype)
    inverse = shuffled(6)
    want = torch.stack([sum(factor[m] * y[m] for m in inverse[3 * t : 3 * t + 3]) for t in range(2)])
    assert same_bits(sum_choices(y, inverse, 3, factor, dtype), want)
    assert same_bits(sum_choices(y, inverse, 3, factor, torch.bfloat16), want.bfloat16())
    assert same_bits(sum_choices(y, inverse, 1, None, dtype), y[inverse])


def test_dots_are_at_least_fp32():
    a, b = normal(3, 7, dtype=torch.bfloat16), normal(3, 7, seed=1)
    exact = torch.linalg.vecdot(a.double(), b.double())
    torch.testing.assert_close(row_dots(a, b), exact.float())
    torch.testing.assert_close(row_dots(a, b.double()), exact)


@pytest.mark.parametrize("a, b", [(64, 32), (32, 64)])
def test_dots_that_the_kernel_does_not_take_go_to_the_reference_which_says_why(a, b):
    dtypes = {32: torch.float32, 64: torch.float64}
    x, y = torch.ones(2, 3, dtype=dtypes[a]), torch.ones(2, 3, dtype=dtypes[b])
    assert row_dots(x, y).tolist() == [3, 3]
    assert "does not multiply" in dispatch.report()["row_dots"]
    assert counters.get("row_dots.use_reference") == 1
    dispatch.set_backend("triton")
    with pytest.raises(dispatch.BackendError, match="float64"):
        row_dots(x, y)


@pytest.mark.parametrize("y, factor, out", [(64, None, 32), (32, 64, 32), (32, None, 64)])
def test_sums_that_the_kernel_does_not_take_go_to_the_reference_which_says_why(y, factor, out):
    dtypes = {32: torch.float32, 64: torch.float64}
    factor_M = None if factor is None else torch.ones(2, dtype=dtypes[factor])
    given = torch.ones(2, 3, dtype=dtypes[y]), torch.tensor([1, 0]), 2, factor_M, dtypes[out]
    assert sum_choices(*given).tolist() == [[2, 2, 2]]
    assert "does not turn sums" in dispatch.report()["sum_choices"]
    assert counters.get("sum_choices.use_reference") == 1
    dispatch.set_backend("triton")
    with pytest.raises(dispatch.BackendError, match="float64"):
        sum_choices(*given)


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("types", [("*bf16", "*bf16"), ("*bf16", "*fp32"), ("*fp32", "*fp32")], ids=str)
@pytest.mark.parametrize("width", [64, 256, 1024])
def test_dots_load_16_bytes_a_thread_and_spill_nothing(width, types, capability):
    kernels = pytest.importorskip("sigma_kernels.experts.row_kernels", exc_type=ImportError)
    usage = compile_kernel(
        kernels._row_dots_fwd_kernel, [*types, "*fp32", "i32", *["i32:16"] * 3],
        capability=capability, **row_tile(width),
    )  # fmt: skip
    assert_lean(usage, MOST_REGISTERS)
    assert usage.load_bytes == 16


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("factor", ["*fp32", None], ids=["factors", "plain"])
@pytest.mark.parametrize("types", [("*fp32", "*bf16"), ("*bf16", "*bf16"), ("*bf16", "*fp32")], ids=str)
@pytest.mark.parametrize("width, top_k", [(64, 2), (256, 2), (1024, 8)])
def test_sums_of_choices_spill_nothing(width, top_k, types, factor, capability):
    kernels = pytest.importorskip("sigma_kernels.experts.row_kernels", exc_type=ImportError)
    given, out = types
    usage = compile_kernel(
        kernels._sum_choices_fwd_kernel, [given, "*i64", factor, out, "i32", "i32:16", "i32:16"],
        capability=capability, options=kernels.SUM_OPTIONS, TOP_K=top_k, **row_tile(width),
    )  # fmt: skip
    assert_lean(usage, MOST_REGISTERS)


def test_a_rehearsal_compiles_what_a_step_launches_and_fuses_no_factor_with_a_sum(tmp_path):
    pytest.importorskip("triton")
    x = normal(16, 64)
    with fake_gpu(tmp_path) as gpu, KernelsAhead() as kernels:
        with kernels.rehearsal():
            expert_step(x, torch.float32, ternary=True, gated=True)
        kernels.wait()
        compiled = sorted(gpu.loaded)
        assert compiled.count("_row_dots_fwd_kernel") == 1
        assert compiled.count("_sum_choices_fwd_kernel") == 2  # outputs without factors, gradients with them
        expert_step(x, torch.float32, ternary=True, gated=True)
        assert sorted(gpu.loaded) == compiled, "the step has compiled something more"
    sums = list(tmp_path.glob("*/_sum_choices_fwd_kernel.ptx"))
    assert len(sums) == 2
    for code in sums:
        assert re.findall(r"\bfma\b", code.read_text()) == []
