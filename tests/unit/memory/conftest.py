"""Shared by the tests of INSTANT."""

from __future__ import annotations

import pytest

from sigma_kernels import counters


@pytest.fixture(autouse=True)
def _empty_counters():
    before = counters.snapshot()
    counters.load({})
    yield
    counters.load(before)
