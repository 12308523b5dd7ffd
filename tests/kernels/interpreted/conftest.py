"""These tests run the Triton kernels in Triton's CPU interpreter, in a process of their own (see test_interpreter.py).

TRITON_INTERPRET must stand before triton is imported, so nothing here is collected by an ordinary run.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from sigma_kernels import dispatch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETING else ["test_*.py"]


@pytest.fixture(autouse=True)
def _triton_backend(_clean_kernel_state):
    """The op must run its kernel, or fail."""
    dispatch.set_backend("triton")


@pytest.fixture(autouse=True)
def _round_as_the_hardware_does(monkeypatch):
    """The interpreter cuts fp32 off where a GPU rounds to the nearest even bf16, and reads subnormal bf16 wrongly."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(data, source, target, rounding_mode):
        if (source, target) == (tl.bfloat16, tl.float32):
            return np.array(data, dtype=np.uint16).astype(np.uint32) << 16
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, rounding_mode)
        values = torch.from_numpy(np.array(data, dtype=np.float32))
        return values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


@pytest.fixture(autouse=True)
def _lose_nan_in_maxima_as_the_hardware_does(monkeypatch):
    """The interpreter keeps what is not a number in every maximum and minimum; a GPU does where it is told to."""
    from triton.runtime import interpreter

    for name, ufunc in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, lambda self, a, b, f=ufunc: self.binary_op(a, b, f))


@pytest.fixture(autouse=True)
def _multiply_bf16_as_numbers(monkeypatch):
    """The interpreter keeps bf16 as its bits and multiplies matrices of them as integers; this widens them first."""
    import triton.language as tl
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def widened(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return interpreter.TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def product(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", product)


@pytest.fixture
def every_access_lies_in_a_tensor(monkeypatch):
    """The interpreter reads and writes whatever address it is given; a GPU would crash, or not."""
    from triton.runtime import interpreter

    storages: list[tuple[int, int]] = []
    init_args = interpreter.GridExecutor._init_args_hst
    load, store = interpreter.InterpreterBuilder.create_masked_load, interpreter.InterpreterBuilder.create_masked_store

    def remember(self, args, kwargs):
        host_args, host_kwargs = init_args(self, args, kwargs)
        given = [t.untyped_storage() for t in (*host_args, *host_kwargs.values()) if isinstance(t, torch.Tensor)]
        storages[:] = [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in given]
        return host_args, host_kwargs

    def check(pointers, mask):
        used = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)].astype(np.uint64)
        size = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
        known = np.zeros(used.shape, dtype=bool)
        for first, end in storages:
            known |= (used >= first) & (used + size <= end)
        assert known.all(), "a kernel reads or writes outside its tensors"

    def checked_load(self, pointers, mask, *rest):
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self, pointers, value, mask, *rest):
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", remember)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", checked_load)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", checked_store)
