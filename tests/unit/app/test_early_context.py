"""The driver is a library that the test compiles: it writes down every call, and waits where it is told to."""

import ctypes
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sigma_app import early_context
from sigma_app.early_context import EarlyContext
from sigma_app.nvidia import Gpu, Nvidia

CUDA = r"""
#include <stdio.h>
#include <unistd.h>
static int said(const char *word, int code) {
    FILE *file = fopen(LOG, "a"); fprintf(file, "%s\n", word); fclose(file); return code;
}
int cuInit(unsigned flags) {
    for (int i = 0; GATE[0] && access(GATE, F_OK) && i < 1000; i++) usleep(10000);
    return said("init", INIT);
}
int cuDeviceGet(int *device, int ordinal) { *device = 7 + ordinal; return said("device", 0); }
int cuDevicePrimaryCtxRetain(void **context, int device) { return said(device == 7 ? "retain" : "wrong", RETAIN); }
int RELEASE(int device) { return said(device == 7 ? "release" : "wrong", 0); }
"""
CARD = Gpu("NVIDIA RTX 4090", 24.0, (8, 9))
GOOD = Nvidia("580.95.05", (CARD,))


class Driver:
    """What the driver in the place of libcuda was asked."""

    def __init__(self, folder: Path) -> None:
        self.log, self.gate = folder / "calls", folder / "gate"

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Driver]:
    """Puts a library with the given answers in the place of libcuda."""
    if sys.platform == "win32" or not shutil.which("cc"):
        pytest.skip("needs a C compiler")

    def build(*, init: int = 0, retain: int = 0, gate: bool = False, release: str = "cuDevicePrimaryCtxRelease_v2"):
        found, target = Driver(tmp_path), tmp_path / "libcuda.so"
        (tmp_path / "cuda.c").write_text(CUDA)
        words = {"LOG": f'"{found.log}"', "GATE": f'"{found.gate if gate else ""}"', "RELEASE": release}
        defines = [f"-D{name}={value}" for name, value in (words | {"INIT": init, "RETAIN": retain}).items()]
        subprocess.run(["cc", "-shared", "-fPIC", "-o", target, tmp_path / "cuda.c", *defines], check=True)
        monkeypatch.setattr(early_context, "_LIBRARY", str(target))
        return found

    return build


def test_the_context_of_the_first_device_is_retained_and_kept(driver):
    asked = driver()
    EarlyContext(GOOD).finish(keep=True)
    assert asked.calls == ["init", "device", "retain"]


def test_a_context_that_nobody_uses_is_given_back_once(driver):
    asked = driver()
    context = EarlyContext(GOOD)
    context.finish(keep=False)
    context.finish(keep=False)
    assert asked.calls == ["init", "device", "retain", "release"]


def test_the_interpreter_goes_on_while_the_driver_works(driver):
    asked = driver(gate=True)
    context = EarlyContext(GOOD)
    assert asked.calls == []
    asked.gate.touch()  # only now the driver can answer: without the thread, or with the lock held, it never came here
    context.finish(keep=True)
    assert asked.calls == ["init", "device", "retain"]


@pytest.mark.parametrize(
    "found",
    [
        None,
        Nvidia(problem="no NVIDIA driver is installed"),
        Nvidia("580.95.05", problem="the driver sees no device"),
        Nvidia("535.161.08", (CARD,)),
        Nvidia("unknown", (CARD,)),
    ],
    ids=["not-wanted", "no-driver", "no-device", "old-driver", "unknown-driver"],
)
def test_where_no_gpu_can_be_used_the_driver_is_left_alone(driver, found):
    asked = driver()
    EarlyContext(found).finish(keep=False)
    assert asked.calls == []


@pytest.mark.parametrize(
    "answers, calls",
    [({"init": 100}, ["init"]), ({"retain": 2}, ["init", "device", "retain"])],
    ids=["no-visible-device", "no-memory"],
)
@pytest.mark.parametrize("keep", [True, False])
def test_what_the_driver_refuses_is_left_to_torch_and_nothing_is_given_back(driver, capfd, answers, calls, keep):
    asked = driver(**answers)
    EarlyContext(GOOD).finish(keep=keep)
    assert asked.calls == calls
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("library", ["libnot-there.so.1", None], ids=["absent", "without-the-functions"])
def test_a_library_that_cannot_be_used_is_left_to_torch(monkeypatch, recwarn, capfd, library):
    monkeypatch.setattr(early_context, "_LIBRARY", library or ctypes.CDLL(None)._name)
    EarlyContext(GOOD).finish(keep=False)
    assert (list(recwarn), capfd.readouterr()) == ([], ("", ""))


def test_the_process_waits_for_the_driver_at_its_end(driver):
    asked = driver(gate=True)
    context = EarlyContext(GOOD)
    thread = next(thread for thread in threading.enumerate() if thread.name == "sigma-cuda-context")
    asked.gate.touch()
    context.finish(keep=True)
    assert not thread.daemon
    assert not thread.is_alive()
