"""Facts about the process for a crash report: versions, generators, memory, disk, environment. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil

from sigma.core.version import VERSION

_PACKAGES = ("torch", "triton", "triton-windows", "transformers", "safetensors", "numpy")
_ENVIRONMENT = ("CUDA_", "TORCH", "TRITON_", "SIGMA_", "OMP_", "MKL_", "NCCL_", "PYTORCH_")


def versions() -> dict[str, str]:
    """Of the program, Python, the system, and the packages that decide numbers."""
    found = {"sigma": VERSION, "python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None:
        found |= {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
        if torch.cuda.is_initialized():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def rng_digest() -> dict[str, str]:
    """SHA-256 of the state of every global generator that is loaded, to compare two runs."""
    digests = {"python": _digest(repr(random.getstate()).encode())}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        digests["numpy"] = _digest(repr(numpy.random.get_state()[1].tolist()).encode())
    if torch is not None:
        digests["torch"] = _digest(bytes(torch.get_rng_state().tolist()))
        if torch.cuda.is_initialized():
            digests["cuda"] = _digest(bytes(torch.cuda.get_rng_state().tolist()))
    return digests


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def memory() -> dict[str, int]:
    """Bytes of the process, the machine, and (when CUDA is in use) the device."""
    machine, process = psutil.virtual_memory(), psutil.Process().memory_info()
    found = {"process_rss": process.rss, "machine_total": machine.total, "machine_available": machine.available}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        found |= {"device_free": free, "device_total": total}
        found |= {
            "device_allocated": torch.cuda.memory_allocated(),
            "device_reserved": torch.cuda.memory_reserved(),
            "device_peak": torch.cuda.max_memory_allocated(),
        }
    return found


def disk(folder: Path) -> dict[str, Any]:
    """Bytes of the disk that holds `folder` (or its nearest existing parent)."""
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return {"folder": str(folder), "total": usage.total, "free": usage.free}


def environment() -> dict[str, str]:
    """The environment variables that steer computation; an allow-list, since others may hold secrets."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)}
