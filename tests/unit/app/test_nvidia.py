"""The driver speaks through a library that the test compiles: every answer, every refusal, no torch."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma_app import nvidia
from sigma_app.first_lines import gpu_line, place_lines
from sigma_app.nvidia import Gpu, Nvidia, why_unusable

NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, DRIVER, size); return VERSION; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = COUNT; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **handle) { *handle = 0; return i == 1 ? 15 : 0; }
int nvmlDeviceGetName(void *d, char *text, unsigned size) { strncpy(text, "NVIDIA RTX 4090", size); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, unsigned long long *m) { m[0] = 24ull << 30; m[1] = m[2] = 0; return MEMORY; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) { *major = 8; *minor = 9; return 0; }
"""
CARD = Gpu("NVIDIA RTX 4090", 24.0, (8, 9))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a library with the given answers in the place of NVML."""
    if sys.platform == "win32" or not shutil.which("cc"):
        pytest.skip("needs a C compiler")

    def build(driver: str = "580.95.05", count: int = 1, init: int = 0, version: int = 0, memory: int = 0) -> None:
        (tmp_path / "nvml.c").write_text(NVML)
        target = tmp_path / f"nvml-{driver}-{count}-{init}-{version}-{memory}.so"
        defines = [f'-DDRIVER="{driver}"', f"-DCOUNT={count}", f"-DINIT={init}", f"-DVERSION={version}"]
        defines.append(f"-DMEMORY={memory}")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", target, tmp_path / "nvml.c", *defines], check=True)
        monkeypatch.setattr(nvidia, "_LIBRARY", str(target))

    return build


def test_a_machine_without_a_driver_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvidia, "_LIBRARY", "libnot-there.so.1")
    assert nvidia.find() == Nvidia(problem="no NVIDIA driver is installed")
    assert str(nvidia.find()) == "none found: no NVIDIA driver is installed"


def test_driver_and_device_are_named(library):
    library()
    assert nvidia.find() == Nvidia("580.95.05", (CARD,))
    assert str(nvidia.find()) == "NVIDIA RTX 4090, 24 GB, driver 580.95.05"


@pytest.mark.parametrize(
    "answers, words",
    [
        ({"driver": "535.161.08"}, "NVIDIA RTX 4090, 24 GB, driver 535.161.08 (CUDA 13 needs driver 580 or newer)"),
        ({"count": 0}, "none found: the driver sees no device, driver 580.95.05"),
        ({"init": 18}, "none found: the driver was updated; restart the machine (NVML error 18)"),
        ({"init": 9}, "none found: its driver is not running (NVML error 9)"),
        ({"version": 3}, "none found: the driver does not tell its version (NVML error 3)"),
    ],
    ids=["old", "no-device", "updated", "not-running", "silent"],
)
def test_what_is_missing_is_said(library, answers, words):
    library(**answers)
    assert str(nvidia.find()) == words


def test_a_device_that_does_not_tell_its_memory_is_there(library):
    library(memory=3)
    assert nvidia.find() == Nvidia("580.95.05", (Gpu("NVIDIA RTX 4090", None, (8, 9)),))
    assert str(nvidia.find()) == "NVIDIA RTX 4090, driver 580.95.05"


def test_a_lost_device_does_not_hide_the_others(library):
    library(count=3)
    assert nvidia.find() == Nvidia("580.95.05", (CARD, CARD), "a device does not answer")


@pytest.mark.parametrize(
    "found, cuda, reason",
    [
        (Nvidia("535.1", (CARD,)), "13.0", "the driver is 535.1, and CUDA 13.0 needs 580 or newer: update the driver"),
        (Nvidia("470.1", (CARD,)), "12.6", "the driver is 470.1, and CUDA 12.6 needs 525 or newer: update the driver"),
        (Nvidia("570.10", (CARD,)), "12.6", "torch with CUDA 12.6 finds no device behind driver 570.10"),
        (Nvidia("580.1", (CARD,)), None, "this torch was built for the CPU; install a CUDA build"),
        (Nvidia(problem="no NVIDIA driver is installed"), "13.0", "no NVIDIA driver is installed"),
    ],
    ids=["old", "old-for-12", "hidden", "cpu-torch", "no-driver"],
)  # fmt: skip
def test_the_reason_names_both_versions(found, cuda, reason):
    assert why_unusable(found, cuda) == reason


def test_several_reasons_are_all_named():
    text = why_unusable(Nvidia("535.1", (CARD,)), None)
    assert "built for the CPU" in text
    assert "535.1, and CUDA 13 needs 580" in text


@pytest.mark.parametrize(
    "found, gpu", [(Nvidia("580.1", (CARD,)), "NVIDIA RTX 4090"), (None, "not asked for (--device cpu)")]
)
def test_first_lines_name_what_is_read_written_and_found(found, gpu, tmp_path):
    config = RunConfig(run=RunSection(output_dir=tmp_path / "run"))
    lines = list(place_lines(config, tmp_path / "args.txt", None))
    assert lines == [f"args file   {tmp_path / 'args.txt'}", f"run folder  {tmp_path / 'run'}"]
    assert gpu_line(found).startswith(f"GPU         {gpu}")
    assert list(place_lines(config, None, tmp_path / "x.log"))[2] == f"log         {tmp_path / 'x.log'}"


def test_a_library_of_another_program_is_no_driver(tmp_path, monkeypatch):
    if sys.platform == "win32" or not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    (tmp_path / "other.c").write_text("int other(void) { return 0; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "other.so", tmp_path / "other.c"], check=True)
    monkeypatch.setattr(nvidia, "_LIBRARY", str(tmp_path / "other.so"))
    assert "lacks a function" in nvidia.find().problem
