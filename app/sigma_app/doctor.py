"""`sigma doctor`: can this machine train with this configuration? Each finding has a verdict and a remedy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from sigma.config.root import RunConfig
from sigma.core import paths
from sigma.core.errors import SigmaError
from sigma_app import nvidia

Status = Literal["OK", "WARN", "FAIL"]

LEAST_PYTHON = (3, 11)
LEAST_TORCH = (2, 11)
LEAST_RAM_GB, LEAST_DISK_GB = 2.0, 1.0


@dataclass(frozen=True)
class Finding:
    """One line of the table; FAIL means that training with this configuration cannot start."""

    name: str
    status: Status
    text: str
    remedy: str = ""


def examine(config: RunConfig) -> list[Finding]:
    """All findings, in the order in which they should be repaired. Trains nothing and writes nothing that stays."""
    needs_gpu = config.run.require_cuda or config.run.device == "cuda"
    checks: list[Callable[[], Finding]] = [
        python_version,
        torch_version,
        lambda: driver(needs_gpu, nvidia.find()),
        lambda: cuda(needs_gpu),
        triton,
        compiler,
        lambda: write_permission(config.run.output_dir),
        lambda: disk_space(config.run.output_dir, config.run.checkpoint_budget_gb),
        memory,
        corpus,
        lambda: wandb(config.run.wandb),
        lambda: Finding("network", "OK", "not needed"),
    ]
    return [check() for check in checks]


def format_findings(findings: list[Finding]) -> list[str]:
    """The table as lines, and one line that sums it up."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for f in findings:
        lines.append(f"{f.status:<4}  {f.name:<{width}}  {f.text}")
        if f.remedy:
            lines.append(f"{'':<{6 + width}}  -> {f.remedy}")
    failed = [f.name for f in findings if f.status == "FAIL"]
    lines.append(f"training cannot start: repair {', '.join(failed)}" if failed else "training can start")
    return lines


def python_version() -> Finding:
    """Python itself."""
    text = f"{platform.python_version()} ({'the executable' if paths.is_frozen() else sys.executable})"
    if sys.version_info >= LEAST_PYTHON:
        return Finding("Python", "OK", text)
    return Finding("Python", "FAIL", text, f"install Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer")


def torch_version() -> Finding:
    """Whether torch can be imported and is new enough."""
    wanted = f"torch {LEAST_TORCH[0]}.{LEAST_TORCH[1]} or newer"
    try:
        version: str = import_module("torch").__version__
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        return Finding("torch", "FAIL", f"cannot be imported ({error})", f"install {wanted}")
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < LEAST_TORCH:
        return Finding("torch", "FAIL", version, f"install {wanted}")
    return Finding("torch", "OK", version)


def foreign_environment() -> dict[str, str]:
    """The environment for programs that are not ours: without the library path of the frozen program."""
    environment = dict(os.environ)
    if paths.is_frozen():
        original = environment.pop("LD_LIBRARY_PATH_ORIG", None)
        environment.pop("LD_LIBRARY_PATH", None)
        if original is not None:
            environment["LD_LIBRARY_PATH"] = original
    return environment


def driver(needed: bool, found: nvidia.Nvidia) -> Finding:
    """The NVIDIA driver and what it sees."""
    bad: Status = "FAIL" if needed else "WARN"
    if not found.driver:
        remedy = f"install the NVIDIA driver {nvidia.LEAST_DRIVER} or newer"
        return Finding("driver", bad, found.problem, remedy if needed else "none needed: the CPU trains the demo")
    if found.is_old:
        return Finding("driver", bad, str(found), f"update the driver to {nvidia.LEAST_DRIVER} or newer")
    if found.problem or not found.gpus:
        return Finding("driver", bad, str(found), "see that the card is seated and powered, then restart")
    return Finding("driver", "OK", str(found))


def cuda(needed: bool) -> Finding:
    """Whether this torch can compute on the GPU."""
    bad: Status = "FAIL" if needed else "WARN"
    try:
        torch = import_module("torch")
    except (ImportError, OSError):
        return Finding("CUDA", bad, "unknown without torch", "repair torch first")
    if torch.version.cuda is None:
        return Finding("CUDA", bad, "this torch was built for the CPU", "install a CUDA build of torch to use a GPU")
    if not torch.cuda.is_available():
        return Finding("CUDA", bad, f"CUDA {torch.version.cuda}, no usable device", "see the driver above")
    gpu = torch.cuda.get_device_properties(0)
    text = f"CUDA {torch.version.cuda}, {gpu.name}, {gpu.total_memory / 2**30:.1f} GB, sm_{gpu.major}{gpu.minor}"
    if gpu.major < 8:
        return Finding("CUDA", "WARN", text, "kernels need compute capability 8.0; the slower references run instead")
    return Finding("CUDA", "OK", text)


def triton() -> Finding:
    """Whether the kernels' compiler is there; without it the references run."""
    if find_spec("triton") is None:
        remedy = "pip install triton (triton-windows on Windows); the slower references run instead"
        return Finding("Triton", "WARN", "not installed", remedy)
    name = "triton-windows" if sys.platform == "win32" else "triton"
    try:
        return Finding("Triton", "OK", metadata.version(name))
    except metadata.PackageNotFoundError:  # the frozen program carries no metadata
        return Finding("Triton", "OK", "installed")


def compiler() -> Finding:
    """A C compiler: Triton builds its launcher with it on the first launch on a GPU."""
    if paths.is_frozen():
        return Finding("compiler", "OK", "not needed: the program carries Triton's C module, and TinyCC")
    names = ("cl", "gcc", "clang") if sys.platform == "win32" else ("cc", "gcc", "clang")
    path = os.environ.get("CC") or next(filter(None, map(shutil.which, names)), None)
    if path:
        return Finding("compiler", "OK", path)
    return Finding("compiler", "WARN", "none found", "only a GPU needs it: install gcc or clang, or set CC")


def existing_parent(folder: Path) -> Path:
    """The folder itself or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def write_permission(output_dir: Path) -> Finding:
    """Whether the output folder can be written to, or created."""
    folder = existing_parent(output_dir)
    if folder.is_dir() and paths.is_writable(folder):
        return Finding("output folder", "OK", str(output_dir))
    what = "is read-only" if folder.is_dir() else "is a file"
    return Finding("output folder", "FAIL", f"{folder} {what}", "give another --output-dir, or change the permissions")


def disk_space(output_dir: Path, budget_gb: float) -> Finding:
    """Free space where the run lives."""
    free_gb = shutil.disk_usage(existing_parent(output_dir)).free / 1e9
    text = f"{free_gb:.1f} GB free"
    if free_gb < LEAST_DISK_GB:
        return Finding("disk", "FAIL", text, f"free {LEAST_DISK_GB:.0f} GB, or give another --output-dir")
    if free_gb < budget_gb:
        remedy = f"checkpoints may take {budget_gb:g} GB; lower --checkpoint-budget-gb or free space"
        return Finding("disk", "WARN", text, remedy)
    return Finding("disk", "OK", text)


def memory() -> Finding:
    """Free memory of the machine."""
    import psutil

    free_gb = psutil.virtual_memory().available / 1e9
    if free_gb < LEAST_RAM_GB:
        return Finding("memory", "WARN", f"{free_gb:.1f} GB free", "close other programs")
    return Finding("memory", "OK", f"{free_gb:.1f} GB free")


def corpus() -> Finding:
    """Whether the bundled texts and the tokenizer are the recorded ones, by SHA-256."""
    from sigma.data.corpus import load_corpus
    from sigma.data.tokenizer import load_tokenizer

    try:
        load_tokenizer("bpe8k")
        return Finding("data", "OK", f"the bundled corpus is complete ({load_corpus().fingerprint})")
    except SigmaError as error:
        return Finding("data", "FAIL", str(error), "install the program again")


def wandb(mode: str) -> Finding:
    """The optional copy of the metrics."""
    if find_spec("wandb") is not None:
        return Finding("wandb", "OK", f"installed, --wandb {mode}")
    if mode == "off":
        return Finding("wandb", "OK", "not installed, not asked for")
    return Finding("wandb", "WARN", f"--wandb {mode}, but not installed", "pip install wandb, or --wandb off")
