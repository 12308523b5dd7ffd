"""Shared by the tests of the kernels."""

from __future__ import annotations

import pytest

from sigma_kernels import counters, dispatch


@pytest.fixture(autouse=True)
def _clean_kernel_state():
    """Each test starts with empty counters and the automatic backend, and leaves them as they were."""
    before, backend = counters.snapshot(), dispatch.backend()
    counters.load({})
    dispatch.set_backend("auto")
    yield
    counters.load(before)
    dispatch.set_backend(backend)
