"""Readings of the machine and peak speeds."""

import pytest
import torch

from sigma.train.hardware import device_name, peak_flops, readings

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_a_cpu_has_memory_and_load_and_no_peak() -> None:
    row = readings(CPU)
    assert 0.01 < row["mem_gb"] < 1000
    assert 0 <= row["ram_used_percent"] <= 100
    assert peak_flops(CPU) is None
    assert "CPU threads" in device_name(CPU)


@pytest.mark.parametrize(
    "name, flops",
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Unheard-of 9000", None),
    ],
)
def test_peaks_are_found_by_the_name_of_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, flops: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA) == flops
    assert device_name(CUDA) == name
