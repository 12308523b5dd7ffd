"""The backend in force, and who puts it back."""

from __future__ import annotations

import pytest

from sigma_kernels import dispatch


def fail_within(backend):
    with dispatch.using(backend):
        assert dispatch.backend() == backend
        raise KeyError


def test_the_backend_before_comes_back_whatever_is_raised():
    with dispatch.using("triton"):
        with pytest.raises(KeyError):
            fail_within("reference")
        assert dispatch.backend() == "triton"
    assert dispatch.backend() == "auto"


def test_as_a_decorator_it_is_opened_for_each_call():
    called = dispatch.using("reference")(dispatch.backend)
    assert [called(), dispatch.backend(), called()] == ["reference", "auto", "reference"]
