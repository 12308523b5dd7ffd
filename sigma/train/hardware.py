"""Readings of the machine for a row of metrics, and the peak speed that utilisation is measured against."""

from __future__ import annotations

import psutil
import torch

# Dense bf16 tensor-core FLOP/s with fp32 accumulation, from the makers' data sheets. Longer names first.
PEAK_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX PRO 6000 Blackwell": 503.8e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of the device, or None when it is not in the table (a CPU never is)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in PEAK_BF16_FLOPS.items() if part in name), None)


def readings(device: torch.device) -> dict[str, float]:
    """Memory of this process (`mem_gb`: peak on CUDA, resident on CPU) and load of the machine, in GB and percent."""
    row = {"cpu_util_percent": psutil.cpu_percent(interval=None), "ram_used_percent": psutil.virtual_memory().percent}
    if device.type == "cuda":
        row["mem_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        row["gpu_mem_alloc_gb"] = torch.cuda.memory_allocated(device) / 1e9
        row["gpu_mem_reserved_gb"] = torch.cuda.memory_reserved(device) / 1e9
    else:
        row["mem_gb"] = psutil.Process().memory_info().rss / 1e9
    return row


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many threads the CPU computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"
