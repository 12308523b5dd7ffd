"""A window that belongs to this program alone waits for a reader; closing it saves. A stand-in plays Windows."""

import builtins
import ctypes
import io
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from sigma.core.stop import StopRequest
from sigma_app import console_window
from sigma_app.early_stop import EarlyStop, leave_on_signal


class Kernel32:
    """The calls that are made of Windows, and what they were given."""

    def __init__(self, processes: int = 1) -> None:
        self.processes, self.mode, self.routines = processes, 0x1F7, []

    def GetConsoleProcessList(self, _array: Any, _count: int) -> int:
        return self.processes

    def GetStdHandle(self, number: int) -> int:
        return number

    def GetConsoleMode(self, _handle: int, mode: Any) -> int:
        mode._obj.value = self.mode
        return 1

    def SetConsoleMode(self, _handle: int, mode: int) -> int:
        self.mode = mode
        return 1

    def SetConsoleCtrlHandler(self, routine: Any, add: int) -> int:
        if add:
            self.routines.append(routine)
        else:
            self.routines.remove(routine)
        return 1


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Kernel32:
    kernel32 = Kernel32()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    monkeypatch.setattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE, raising=False)
    return kernel32


@pytest.mark.parametrize("processes, ours", [(1, True), (2, False), (0, False)])
def test_the_window_is_ours_when_no_shell_shares_it(windows: Kernel32, processes: int, ours: bool):
    windows.processes = processes
    assert console_window.claim() is ours


@pytest.mark.parametrize("processes, mode", [(1, 0x1B7), (2, 0x1F7)], ids=["ours", "a-shells"])
def test_a_click_into_our_window_does_not_stop_the_training(windows: Kernel32, processes: int, mode: int):
    windows.processes = processes
    console_window.claim()
    assert windows.mode == mode


def test_from_source_the_window_is_never_ours(windows: Kernel32, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(sys, "frozen")
    assert console_window.claim() is False


def test_the_desktop_file_asks_for_it_and_children_do_not_hear_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(console_window.HOLD_VARIABLE, "1")
    assert console_window.claim() is True
    assert console_window.claim() is False


@pytest.mark.parametrize("terminal, asked", [(True, 1), (False, 0)], ids=["terminal", "pipe"])
def test_only_a_terminal_is_waited_for(terminal: bool, asked: int, monkeypatch: pytest.MonkeyPatch):
    stream, prompts = io.StringIO(), []
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdin", stream)
    monkeypatch.setattr(builtins, "input", prompts.append)
    console_window.hold()
    assert len(prompts) == asked


@pytest.mark.parametrize("gone", [EOFError, KeyboardInterrupt, OSError])
def test_a_reader_who_leaves_is_no_error(gone: type[BaseException], monkeypatch: pytest.MonkeyPatch):
    def leave(_prompt: str) -> str:
        raise gone

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(builtins, "input", leave)
    console_window.hold()


@pytest.mark.parametrize("event, name", [(2, "CTRL_CLOSE_EVENT"), (5, "CTRL_LOGOFF_EVENT"), (6, "CTRL_SHUTDOWN_EVENT")])
def test_closing_the_window_asks_for_a_stop_and_windows_waits_until_all_is_saved(
    windows: Kernel32, event: int, name: str
):
    stop, answers = StopRequest(), []
    with stop, console_window.close_saves(stop):
        (routine,) = windows.routines
        system = threading.Thread(target=lambda: answers.append(routine(event)))
        system.start()
        system.join(0.2)
        assert stop.signal_name == name
        assert system.is_alive(), "answering would end the process"
    system.join(10)
    assert answers == [1]
    assert windows.routines == []
    assert stop.exit_code == 143


def test_closing_the_window_during_the_start_up_leaves_it(windows: Kernel32, monkeypatch: pytest.MonkeyPatch):
    stop = StopRequest()

    def start_up() -> None:
        system.start()
        for _ in range(1000):
            time.sleep(0.01)

    with console_window.close_saves(stop):
        system = threading.Thread(target=windows.routines[0], args=(2,), daemon=True)
        with pytest.raises(EarlyStop) as caught, leave_on_signal(stop):
            start_up()
    assert caught.value.signal_name == "CTRL_CLOSE_EVENT"
    system.join(10)


def test_ctrl_c_is_left_to_the_other_handlers(windows: Kernel32):
    with console_window.close_saves(StopRequest()):
        assert windows.routines[0](0) == 0


def test_elsewhere_nothing_is_installed():
    with console_window.close_saves(StopRequest()):
        pass
