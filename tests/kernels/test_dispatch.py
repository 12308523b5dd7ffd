"""The backend in force, and who puts it back."""

from __future__ import annotations

import pytest

from sigma_kernels import dispatch


def test_a_backend_lasts_as_long_as_it_is_open_whatever_is_raised():
    dispatch.set_backend("triton")
    with pytest.raises(KeyError), dispatch.using("reference"):
        assert dispatch.backend() == "reference"
        with dispatch.using("auto"):
            assert dispatch.backend() == "auto"
        assert dispatch.backend() == "reference"
        raise KeyError
    assert dispatch.backend() == "triton"


def test_as_a_decorator_it_is_opened_for_each_call():
    called = dispatch.using("reference")(dispatch.backend)
    assert [called(), dispatch.backend(), called()] == ["reference", "auto", "reference"]
