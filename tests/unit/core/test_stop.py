import contextlib
import os
import signal

import pytest

from sigma.core.stop import StopRequest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals to itself")


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_a_signal_only_sets_the_flag_and_gives_the_exit_code(name, code):
    with StopRequest() as stop:
        assert not stop.requested
        assert stop.exit_code == 0
        send(getattr(signal, name))
        assert stop.requested
        assert (stop.signal_name, stop.exit_code) == (name, code)


def test_handlers_are_restored_also_after_an_exception():
    def mine(*_):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with contextlib.suppress(RuntimeError), StopRequest():
            assert signal.getsignal(signal.SIGTERM) is not mine
            assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
            raise RuntimeError
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_second_interrupt_raises_at_once():
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.exit_code == 130


def test_the_second_interrupt_waits_for_the_end_of_the_write_in_progress():
    written = []

    def save(stop):
        with stop.hold():
            with stop.hold():
                send(signal.SIGINT)
                send(signal.SIGINT)
                written.append("inner")
            written.append("outer")

    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt):
            save(stop)
        assert written == ["inner", "outer"]


def test_an_error_inside_the_write_is_not_hidden_by_the_interrupt():
    def save(stop):
        with stop.hold():
            send(signal.SIGINT)
            send(signal.SIGINT)
            raise OSError("disk")

    with StopRequest() as stop, pytest.raises(OSError, match="disk"):
        save(stop)


def test_the_first_reason_is_kept_and_a_later_signal_does_not_raise():
    with StopRequest() as stop:
        stop.request("SIGTERM")
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert stop.signal_name == "SIGTERM"


def test_hold_without_a_stop_does_nothing():
    with StopRequest() as stop, stop.hold():
        pass
    assert not stop.requested
