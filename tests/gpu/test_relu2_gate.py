"""The ReLU^2 gate on a GPU: exact up to one rounding, the bits of the reference there and on the CPU, large shapes."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters
from sigma_kernels.relu2_gate.op import relu2_gate
from sigma_kernels.row_tiles import FLOATS
from tests.kernels import relu2_gate_cases as cases
from tests.kernels.row_cases import inside_wider_rows

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_backend")]

SHAPES = [(1,), (5, 123), (3, 7, 768), (4, 1000, 64), (4096, 1024), (513, 3000)]


def on_gpu(inputs: cases.Inputs) -> cases.Inputs:
    return cases.Inputs(*(tensor.cuda() for tensor in inputs))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient_are_exact_up_to_one_rounding_and_have_the_bits_of_the_reference(shape, dtype):
    inputs = on_gpu(cases.make_inputs(*shape, dtype=dtype))
    cases.assert_rounded_once(cases.run(inputs), cases.exact(inputs), dtype)
    cases.assert_bits(inputs)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_infinities_zeros_huge_and_tiny_values_have_the_bits_of_the_reference(dtype):
    cases.assert_bits(on_gpu(cases.special_inputs(dtype)))


def test_halves_inside_wider_rows_are_read_in_place():
    inputs = on_gpu(cases.make_inputs(65, 100, dtype=torch.bfloat16))
    cases.assert_bits(cases.Inputs(*(inside_wider_rows(tensor) for tensor in inputs)))


def test_elements_beyond_two_to_the_31st_are_reached():
    """Offsets in 32 bits would wrap here: 2^31 elements and one row more."""
    up = torch.zeros(2**31 // 16384 + 1, 16384, dtype=torch.bfloat16, device="cuda").requires_grad_()
    with torch.no_grad():
        up[-1] = 3
    out = relu2_gate(up)
    assert bool((out[-1] == 27).all())
    assert not bool(out[0].any())
    out.backward(torch.ones_like(out))
    assert up.grad is not None
    assert bool((up.grad[-1].view(2, -1) == torch.tensor([[18], [9]], device="cuda")).all())
    assert not bool(up.grad[0].any())


def test_no_rows_launch_nothing():
    results = cases.run(on_gpu(cases.make_inputs(0, 8, dtype=torch.bfloat16)))
    assert (results["out"].shape, results["dup"].shape) == ((0, 8), (0, 16))


def test_the_kernel_ran_and_not_the_reference():
    names = ("relu2_gate.use_triton", "relu2_gate.forward", "relu2_gate.backward")
    before = [counters.get(name) for name in names]
    cases.run(on_gpu(cases.make_inputs(5, 123, dtype=torch.bfloat16)))
    assert [counters.get(name) for name in names] == [count + 1 for count in before]
