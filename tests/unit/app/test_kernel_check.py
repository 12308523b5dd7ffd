"""A start on a GPU says the result of a real kernel, and ends with 3 when it failed or computed something else."""

import sys
import types

import pytest
import torch

from sigma.core.errors import MissingRequirementError
from sigma_app.kernel_check import EPS, check_kernel
from sigma_kernels import counters, dispatch
from sigma_kernels.rms_norm.reference import rms_norm_reference


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A device that computes on the CPU, and a kernel module whose `launch_forward` the test replaces."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(dispatch, "why_not_triton", lambda *_: None)
    kernel = types.ModuleType("sigma_kernels.rms_norm.kernel")
    monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
    return kernel


def right(x, weight, residual, eps):
    return (rms_norm_reference(x, weight, eps=eps), None, None)


def test_a_kernel_that_is_right_is_said_and_not_counted(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "launch_forward", right, raising=False)
    before = counters.get("rms_norm.forward")
    assert "a real one ran on a GPU and was right" in check_kernel()
    assert counters.get("rms_norm.forward") == before


def test_a_kernel_that_is_wrong_ends_the_start(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "launch_forward", lambda x, *_: (x / x.norm() + EPS, None, None), raising=False)
    with pytest.raises(MissingRequirementError, match="wrong numbers on a GPU") as caught:
        check_kernel()
    assert caught.value.exit_code == 3


def test_a_kernel_that_cannot_start_ends_the_start_with_its_words(gpu, monkeypatch):
    def fail(*_):
        raise RuntimeError("PTX version is too new")

    monkeypatch.setattr(gpu, "launch_forward", fail, raising=False)
    with pytest.raises(MissingRequirementError, match=r"PTX version is too new.*--selftest"):
        check_kernel()


def test_a_gpu_that_is_too_old_for_kernels_is_said_and_trains_with_the_references(gpu, monkeypatch):
    monkeypatch.setattr(dispatch, "why_not_triton", lambda *_: "compute capability 7.5 is below 8.0")
    assert "compute capability 7.5 is below 8.0; the slower references run" in check_kernel()
