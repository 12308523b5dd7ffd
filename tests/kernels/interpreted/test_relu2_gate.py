"""The ReLU^2 gate in Triton, interpreted: the float64 formula rounded once, and the bits of the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sigma.memory import instant
from sigma_kernels import counters
from sigma_kernels.relu2_gate.op import relu2_gate
from sigma_kernels.row_tiles import FLOATS
from tests.kernels import relu2_gate_cases as cases
from tests.kernels.row_cases import inside_wider_rows, same_bits

# One element, odd widths, several tiles of rows, several tiles of columns.
SHAPES = [(1,), (5, 123), (3, 2, 100), (131, 64), (2, 3000)]

pytestmark = pytest.mark.usefixtures("every_access_lies_in_a_tensor")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient_are_exact_up_to_one_rounding_and_have_the_bits_of_the_reference(shape, dtype):
    inputs = cases.make_inputs(*shape, dtype=dtype)
    cases.assert_rounded_once(cases.run(inputs), cases.exact(inputs), dtype)
    cases.assert_bits(inputs)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")  # numpy's, which interprets
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_infinities_zeros_huge_and_tiny_values_have_the_bits_of_the_reference(dtype):
    cases.assert_bits(cases.special_inputs(dtype))


def turned(x: Tensor) -> Tensor:
    """The same values with the last axis not dense."""
    return x.mT.contiguous().mT


def repeated(x: Tensor) -> Tensor:
    """The first row in place of every row, without a copy."""
    return x[..., :1, :].expand(x.shape)


@pytest.mark.parametrize("layout", [inside_wider_rows, turned, repeated])
def test_inputs_that_are_not_contiguous_have_the_bits_of_dense_ones(layout):
    inputs = cases.make_inputs(2, 5, 33)
    for moved in (inputs._replace(up=layout(inputs.up)), inputs._replace(dout=layout(inputs.dout))):
        assert not (moved.up.is_contiguous() and moved.dout.is_contiguous())
        strided, dense = cases.run(moved), cases.run(cases.Inputs(*(t.contiguous() for t in moved)))
        assert all(same_bits(strided[name], dense[name]) for name in dense)
        cases.assert_bits(moved)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_no_rows_give_no_values(shape):
    results = cases.run(cases.make_inputs(*shape, dtype=torch.bfloat16))
    assert {name: (tuple(t.shape), t.dtype) for name, t in results.items()} == {
        "out": (shape, torch.bfloat16), "dup": ((*shape[:-1], 16), torch.bfloat16),
    }  # fmt: skip


def test_the_kernel_counts_as_the_reference_does():
    cases.run(cases.make_inputs(5, 123))
    assert counters.snapshot() == {"relu2_gate.backward": 1, "relu2_gate.forward": 1, "relu2_gate.use_triton": 1}


def test_the_input_is_kept_as_it_came_in_and_nothing_else():
    saved: list[Tensor] = []
    up = inside_wider_rows(cases.make_inputs(5, 33).up).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        relu2_gate(up)
    assert [(t.data_ptr(), t.stride()) for t in saved] == [(up.data_ptr(), up.stride())]


def test_an_instant_region_keeps_its_input_once_and_changes_no_bit():
    class Gate(nn.Module):
        instant_regions = ("activation",)

        def forward(self, up: Tensor) -> Tensor:
            return instant.recompute(self, relu2_gate, up)

    gate, inputs = Gate(), cases.make_inputs(5, 33)
    want = cases.run(inputs, gate)
    instant.patch(gate)
    got = cases.run(inputs, gate)
    assert all(same_bits(got[name], want[name]) for name in want)
    assert counters.get("instant.recompute") == 1
    assert instant.audit_saved_bytes(lambda: gate(inputs.up.clone().requires_grad_())) == inputs.up.nbytes
