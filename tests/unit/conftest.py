"""Shared by all unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from sigma_kernels import counters

# An example may take any time: one that a busy machine delays is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _empty_counters() -> Iterator[None]:
    """The execution counters are global: every test starts from none, and leaves none behind."""
    counters.load({})
    yield
    counters.load({})
