"""The reference of the ReLU^2 gate is right, the op guards and counts, and the kernels compile within their budget."""

from __future__ import annotations

import re

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.ahead import KernelsAhead
from sigma_kernels.relu2_gate.op import relu2_gate
from sigma_kernels.relu2_gate.reference import relu2_gate_reference
from sigma_kernels.row_tiles import part_tile
from tests.kernels import relu2_gate_cases as cases
from tests.kernels.compile_only import EVERY_CAPABILITY, assert_lean, compile_kernel
from tests.kernels.fake_gpu import fake_gpu
from tests.kernels.row_cases import normal

MOST_REGISTERS = 64  # of a thread: 32 resident warps per multiprocessor
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 5, 123), (64, 256)], ids=str)
def test_the_reference_is_the_float64_formula_rounded_once_in_value_and_gradient(shape, dtype):
    inputs = cases.make_inputs(*shape, dtype=dtype)
    cases.assert_rounded_once(cases.run(inputs, relu2_gate_reference), cases.exact(inputs), dtype)


def test_the_reference_passes_gradcheck():
    assert torch.autograd.gradcheck(relu2_gate_reference, (normal(3, 14, dtype=torch.float64).requires_grad_(),))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_gets_through_and_a_closed_gate_gives_no_gradient_of_its_own(dtype):
    inputs = cases.special_inputs(dtype)
    gate, value = inputs.up.chunk(2, dim=-1)
    results = cases.run(inputs, relu2_gate_reference)
    of_gate, of_value = results["dup"].chunk(2, dim=-1)
    assert bool(results["out"][gate.isnan() | value.isnan() | ((gate <= 0) & value.isinf())].isnan().all())
    assert bool((of_gate[gate <= 0] == 0).all())
    assert bool(of_gate[gate.isnan()].isnan().all())
    assert bool(of_value[gate.isnan() | ((gate <= 0) & inputs.dout.isinf())].isnan().all())


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3,), (2, 5)], ids=str)
def test_an_axis_without_two_halves_is_refused(shape):
    with pytest.raises(ValueError, match="two halves"):
        relu2_gate(torch.zeros(shape))


def test_the_op_counts_each_forward_and_each_backward():
    cases.run(cases.make_inputs(2, 5))
    with torch.no_grad():
        relu2_gate(torch.ones(2, 4))
    assert counters.snapshot() == {"relu2_gate.backward": 1, "relu2_gate.forward": 2, "relu2_gate.use_reference": 2}


@pytest.mark.parametrize(
    "dtype, reason", [(torch.float64, "does not take torch.float64"), (torch.float32, "not on a CUDA device|installed")]
)
def test_what_the_kernel_does_not_take_goes_to_the_reference_which_says_why(dtype, reason):
    relu2_gate(torch.ones(2, 4, dtype=dtype))
    assert re.search(reason, dispatch.report()["relu2_gate"])
    dispatch.set_backend("triton")
    with pytest.raises(dispatch.BackendError, match=reason):
        relu2_gate(torch.ones(2, 4, dtype=dtype))


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("pointer", ["*fp32", "*bf16", "*fp16"])
@pytest.mark.parametrize("width", [64, 256, 768, 1024, 2048])
def test_the_kernels_load_16_bytes_a_thread_and_spill_nothing(width, pointer, capability):
    kernel = pytest.importorskip("sigma_kernels.relu2_gate.kernel", exc_type=ImportError)
    forward = [pointer] * 2 + ["i32", "i32:16", "i32:16"]
    backward = [pointer] * 3 + ["i32", "i32:16", "i32:16", "i32:16"]
    for function, types in ((kernel._relu2_gate_fwd_kernel, forward), (kernel._relu2_gate_bwd_kernel, backward)):
        usage = compile_kernel(function, types, capability=capability, **part_tile(width))
        assert_lean(usage, MOST_REGISTERS)
        assert usage.load_bytes == 16


def test_a_rehearsal_compiles_what_a_step_launches_and_nothing_in_it_is_fused_or_drops_nan(tmp_path):
    pytest.importorskip("triton")
    inputs = cases.make_inputs(16, 64, dtype=torch.bfloat16)
    with fake_gpu(tmp_path) as gpu, KernelsAhead() as kernels:
        with kernels.rehearsal():
            cases.run(inputs)
        assert kernels.wait() == 2
        cases.run(inputs)
        assert gpu.launched == ["_relu2_gate_fwd_kernel", "_relu2_gate_bwd_kernel"]
        assert len(gpu.loaded) == 2, "the step has compiled something more"
    for code in tmp_path.glob("*/*.ptx"):
        # a maximum would, on a GPU; the interpreter's does not
        assert re.findall(r"\b(?:fma|ftz|max)\b", code.read_text()) == []
