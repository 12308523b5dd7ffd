"""Shared by all unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sigma_kernels import counters


@pytest.fixture(autouse=True)
def _empty_counters() -> Iterator[None]:
    """The execution counters are global: every test starts from none, and leaves none behind."""
    counters.load({})
    yield
    counters.load({})
