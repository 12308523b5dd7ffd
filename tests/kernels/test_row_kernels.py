"""Codes of rows and rows times factors: what the kernels take, and that they compile within their budget."""

from __future__ import annotations

import re

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.ahead import KernelsAhead
from sigma_kernels.bitlinear.op import quantize_activation, scale_rows
from sigma_kernels.row_tiles import WIDEST, row_tile
from tests.kernels.compile_only import EVERY_CAPABILITY, assert_lean, compile_kernel
from tests.kernels.fake_gpu import fake_gpu
from tests.kernels.row_cases import expert_step, normal, product_step, same_bits

MOST_REGISTERS = 64  # of a thread: 32 resident warps per multiprocessor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_codes_in_another_dtype_are_the_same_integers(dtype):
    codes, scale = quantize_activation(normal(3, 7))
    assert codes.dtype == torch.int8
    other, same = quantize_activation(normal(3, 7), dtype)
    assert same_bits(other, codes.to(dtype))
    assert torch.equal(same, scale)


def test_a_factor_multiplies_its_row_in_fp32_and_the_product_is_rounded_once():
    a, factor = normal(5, 7, dtype=torch.bfloat16), normal(5, seed=1)
    got = scale_rows(a, factor, torch.bfloat16)
    assert same_bits(got, (a.double() * factor.double()[:, None]).float().bfloat16())
    assert same_bits(scale_rows(a, factor[0], torch.float32), (a.double() * factor[0].double()).float())


@pytest.mark.parametrize(
    "x, dtype, reason",
    [
        (torch.zeros(2, 3, dtype=torch.float64), torch.int8, "does not turn torch.float64"),
        (torch.zeros(2, 3), torch.float64, "codes in torch.float64"),
        (torch.zeros(1, WIDEST + 1), torch.int8, f"1 to {WIDEST}"),
    ],
    ids=["fp64", "fp64 codes", "wide"],
)
def test_rows_that_the_kernel_does_not_take_go_to_the_reference_which_says_why(x, dtype, reason):
    quantize_activation(x, dtype)
    assert reason in dispatch.report()["quantize_rows"]
    assert counters.get("quantize_rows.use_reference") == 1
    dispatch.set_backend("triton")
    with pytest.raises(dispatch.BackendError, match=reason):
        quantize_activation(x, dtype)


@pytest.mark.parametrize("a, factor, out", [(64, 32, 32), (32, 64, 32), (32, 32, 64)])
def test_factors_that_the_kernel_does_not_take_go_to_the_reference_which_says_why(a, factor, out):
    dtypes = {32: torch.float32, 64: torch.float64}
    scale_rows(torch.zeros(2, 3, dtype=dtypes[a]), torch.ones(2, dtype=dtypes[factor]), dtypes[out])
    assert "does not turn" in dispatch.report()["scale_rows"]
    assert counters.get("scale_rows.use_reference") == 1


def test_without_a_gpu_a_step_counts_the_reference_where_it_would_count_kernels():
    product_step(normal(3, 8), torch.bfloat16)
    expert_step(normal(3, 8), torch.float32, ternary=True, gated=True)
    assert (counters.get("quantize_rows.use_reference"), counters.get("scale_rows.use_reference")) == (2 + 2, 3 + 2)
    assert (counters.get("row_dots.use_reference"), counters.get("sum_choices.use_reference")) == (1, 2)
    reasons = [dispatch.report()[op] for op in ("quantize_rows", "scale_rows", "row_dots", "sum_choices")]
    assert set(reasons) == {"a tensor is not on a CUDA device"}


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("types", [("*bf16", "*bf16"), ("*bf16", "*i8"), ("*fp32", "*bf16")], ids=str)
@pytest.mark.parametrize("width", [64, 256, 768, 2048, WIDEST])
def test_the_codes_load_16_bytes_a_thread_and_spill_nothing(width, types, capability):
    kernel = pytest.importorskip("sigma_kernels.bitlinear.quantize_kernel", exc_type=ImportError)
    usage = compile_kernel(
        kernel._quantize_rows_fwd_kernel, [*types, "*fp32", "i32", "i32:16", "i32:16"],
        capability=capability, options=kernel.OPTIONS, **row_tile(width),
    )  # fmt: skip
    assert_lean(usage, MOST_REGISTERS)
    assert usage.load_bytes == 16


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("types", [("*fp32", "*bf16"), ("*bf16", "*bf16"), ("*bf16", "*fp32")], ids=str)
@pytest.mark.parametrize("width", [64, 256, 1024])
def test_scaled_rows_spill_nothing(width, types, capability):
    kernel = pytest.importorskip("sigma_kernels.bitlinear.scale_kernel", exc_type=ImportError)
    given, out = types
    usage = compile_kernel(
        kernel._scale_rows_fwd_kernel, [given, "*fp32", out, "i32", "i32:16", "i32", "i32:16"],
        capability=capability, **row_tile(width),
    )  # fmt: skip
    assert_lean(usage, MOST_REGISTERS)


def test_a_rehearsal_compiles_what_a_product_launches_and_fuses_no_product_with_a_sum(tmp_path):
    pytest.importorskip("triton")
    x = normal(16, 64)
    with fake_gpu(tmp_path) as gpu, KernelsAhead() as kernels:
        with kernels.rehearsal():
            product_step(x, torch.bfloat16)
        assert kernels.wait() == 4
        compiled = sorted(gpu.loaded)
        assert compiled == ["_quantize_rows_fwd_kernel"] + ["_scale_rows_fwd_kernel"] * 3
        product_step(x, torch.bfloat16)
        assert sorted(gpu.loaded) == compiled, "the step has compiled something more"
        assert len(gpu.launched) == 5  # the gradient of the weight needs the codes again
    for code in tmp_path.glob("*/*.ptx"):
        assert re.findall(r"\bfma\b", code.read_text()) == []
