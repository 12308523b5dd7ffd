"""A signal before the first step leaves at once; afterwards everything is as it was."""

import os
import signal
import sys

import pytest

from sigma.core.stop import StopRequest
from sigma_app.early_stop import EarlyStop, leave_on_signal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 143), ("SIGINT", 130)])
def test_a_signal_leaves_the_block_and_is_remembered(name: str, code: int):
    stop = StopRequest()
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(EarlyStop) as caught, leave_on_signal(stop):
        signal.raise_signal(getattr(signal, name))
    assert caught.value.signal_name == stop.signal_name == name
    assert stop.exit_code == code
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with leave_on_signal(stop := StopRequest()):
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_trainers_own_handlers_win_while_it_runs():
    stop = StopRequest()
    with leave_on_signal(stop):
        with stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(EarlyStop):
            os.kill(os.getpid(), signal.SIGTERM)


def test_except_exception_does_not_eat_it():
    assert not issubclass(EarlyStop, Exception)
