"""What the NVIDIA driver says about itself, without torch: through NVML, the library that comes with the driver."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

LEAST_DRIVER = 580
"""First driver branch that runs CUDA 13."""
_LEAST_DRIVERS = {"12": 525, "13": LEAST_DRIVER}
"""By major version of CUDA, its release notes, table of minimum driver versions."""
_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_VERSION_MISMATCH = 18


@dataclass(frozen=True)
class Gpu:
    """One device."""

    name: str
    memory_gb: float | None
    """None where the driver does not tell it: a part of a card, or memory that it shares with the processor."""
    capability: tuple[int, int]

    def __str__(self) -> str:
        return self.name if self.memory_gb is None else f"{self.name}, {self.memory_gb:.0f} GB"


@dataclass(frozen=True)
class Nvidia:
    """The driver and its devices; `driver` is empty where there is none, `problem` says what does not work."""

    driver: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""

    @property
    def branch(self) -> int | None:
        """580 of `580.95.05`; None when it is not known."""
        first = self.driver.split(".")[0]
        return int(first) if first.isdecimal() else None

    @property
    def is_old(self) -> bool:
        """Whether the driver cannot run CUDA 13."""
        return self.branch is not None and self.branch < LEAST_DRIVER

    def __str__(self) -> str:
        if not self.driver:
            return f"none found: {self.problem}"
        names = "; ".join(map(str, self.gpus)) or f"none found: {self.problem or 'the driver sees no device'}"
        need = f" (CUDA 13 needs driver {LEAST_DRIVER} or newer)" if self.is_old else ""
        return f"{names}, driver {self.driver}{need}"


def find() -> Nvidia:
    """Ask the driver. Never raises: a machine without a GPU is as good as any other."""
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return Nvidia(problem="no NVIDIA driver is installed")
    try:
        return _started(nvml)
    except AttributeError as error:
        return Nvidia(problem=f"the driver's library lacks a function ({error})")


def _started(nvml: Any) -> Nvidia:
    code: int = nvml.nvmlInit_v2()
    if code:
        what = (
            "the driver was updated; restart the machine" if code == _VERSION_MISMATCH else "its driver is not running"
        )
        return Nvidia(problem=f"{what} (NVML error {code})")
    try:
        return _ask(nvml)
    finally:
        nvml.nvmlShutdown()


def _ask(nvml: Any) -> Nvidia:
    version, count = ctypes.create_string_buffer(80), ctypes.c_uint()
    if code := nvml.nvmlSystemGetDriverVersion(version, 80):
        return Nvidia(problem=f"the driver does not tell its version (NVML error {code})")
    driver = version.value.decode(errors="replace")
    if code := nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return Nvidia(driver, problem=f"the driver cannot count its devices (NVML error {code})")
    found = [_device(nvml, index) for index in range(count.value)]
    lost = "" if all(found) else "a device does not answer"
    return Nvidia(driver, tuple(gpu for gpu in found if gpu), lost)


def _device(nvml: Any, index: int) -> Gpu | None:
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), (ctypes.c_ulonglong * 3)()
    major, minor = ctypes.c_int(), ctypes.c_int()
    failed = (
        nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        or nvml.nvmlDeviceGetName(handle, name, 96)
        or nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    )
    if failed:
        return None
    memory_gb = None if nvml.nvmlDeviceGetMemoryInfo(handle, memory) else memory[0] / 2**30
    return Gpu(name.value.decode(errors="replace"), memory_gb, (major.value, minor.value))


def why_unusable(found: Nvidia, torch_cuda: str | None) -> str:
    """Why torch, built for CUDA `torch_cuda` (None: for the CPU), cannot use a GPU; names every version that matters.

    Meant for the case that `torch.cuda.is_available()` has said no.
    """
    reasons: list[str] = []
    if not found.gpus:
        reasons.append(found.problem or "the driver sees no device")
    if torch_cuda is None:
        reasons.append("this torch was built for the CPU; install a CUDA build")
    least = _LEAST_DRIVERS.get((torch_cuda or "13").split(".")[0], LEAST_DRIVER)
    if found.branch is not None and found.branch < least:
        cuda = f"CUDA {torch_cuda or 13}"
        reasons.append(f"the driver is {found.driver}, and {cuda} needs {least} or newer: update the driver")
    if not reasons:
        reasons.append(f"torch with CUDA {torch_cuda} finds no device behind driver {found.driver}")
    return "; ".join(reasons)
