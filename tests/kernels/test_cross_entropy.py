"""The cross-entropy: its reference, what the kernels take, and that they compile within their budget."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters, dispatch
from sigma_kernels.cross_entropy.op import cross_entropy
from sigma_kernels.row_tiles import FLOATS
from tests.kernels.compile_only import EVERY_CAPABILITY, assert_lean, compile_kernel
from tests.kernels.cross_entropy_cases import assert_right, make_inputs, run

MOST_REGISTERS = 80  # of a thread: three programs of eight warps on a multiprocessor


def test_the_loss_of_a_row_is_minus_the_log_of_its_labels_probability():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    nats = cross_entropy(probabilities.log() + 3.0, torch.tensor([1, 2]))
    torch.testing.assert_close(nats, -torch.tensor([0.25, 0.7]).log())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_reference_matches_the_float64_formula(dtype):
    assert_right(make_inputs((6, 300), dtype))


def test_float64_stays_float64_and_its_gradient_is_right():
    logits, labels, _ = make_inputs((2, 3, 7), torch.float64)
    assert cross_entropy(logits, labels).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels), logits.requires_grad_())
    assert "does not take logits in torch.float64" in dispatch.report()["cross_entropy"]


def test_without_a_gpu_a_step_counts_the_reference():
    run(*make_inputs((4, 7), torch.float32))
    counts = {"cross_entropy.backward": 1, "cross_entropy.forward": 1, "cross_entropy.use_reference": 1}
    assert counters.snapshot() == counts


@pytest.mark.parametrize("logits, labels", [((2, 3), (3,)), ((), ()), ((2, 0), (2,)), ((2, 3), (2, 3))], ids=str)
def test_shapes_that_do_not_fit_are_refused(logits, labels):
    with pytest.raises(ValueError, match="do not fit"):
        cross_entropy(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


@pytest.mark.parametrize("logits, labels", [(torch.float32, torch.int32), (torch.int64, torch.int64)], ids=str)
def test_dtypes_that_do_not_fit_are_refused(logits, labels):
    with pytest.raises(ValueError, match="labels are int64 and logits floats"):
        cross_entropy(torch.zeros(2, 3, dtype=logits), torch.zeros(2, dtype=labels))


@pytest.mark.parametrize("capability", EVERY_CAPABILITY)
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
def test_the_kernels_spill_nothing(dtype, capability):
    kernel = pytest.importorskip("sigma_kernels.cross_entropy.kernel", exc_type=ImportError)
    forward = [dtype, "*i64", "*fp32", "*fp32", "*fp32", "i32:16", "i32:16"]
    backward = [dtype, "*i64", "*fp32", "*fp32", "*fp32", dtype, "i32:16", "i32", "i32:16"]
    for function, types in (
        (kernel._cross_entropy_fwd_kernel, forward),
        (kernel._cross_entropy_bwd_kernel, backward),
    ):
        usage = compile_kernel(function, types, capability=capability, **kernel.TILE)
        assert_lean(usage, MOST_REGISTERS)
