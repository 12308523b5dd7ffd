"""Shared by the tests on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sigma_kernels import dispatch


@pytest.fixture
def triton_backend() -> Iterator[None]:
    """The op must run its kernel, or fail."""
    dispatch.set_backend("triton")
    yield
    dispatch.set_backend("auto")
