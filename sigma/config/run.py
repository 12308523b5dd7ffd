"""Where a run lives, how long it lasts, and how it saves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sigma.config.option import opt


@dataclass(frozen=True)
class RunSection:
    """Device, output folder, checkpoints and logging."""

    preset: Literal["auto", "demo", "small", "base", "large"] = opt(
        "auto", "Sizes of model and batch; auto picks by device memory, demo without a GPU."
    )
    device: Literal["auto", "cuda", "cpu"] = opt("auto", "Where to train; auto takes the GPU when there is one.")
    require_cuda: bool = opt(False, "Stop with exit code 3 when there is no usable NVIDIA GPU.")
    deterministic: bool = opt(
        False, "Only bit-repeatable algorithms on the GPU (slower; the CPU is always repeatable)."
    )
    seed: int = opt(1337, "Seed of weights, data order and sampling.", low=0, high=2**63 - 1)
    output_dir: Path = opt(Path("runs/sigma_main"), "Folder of the run; started again, it continues there.")  # noqa: RUF009 - opt makes a field
    resume: bool = opt(True, "Continue from the newest valid checkpoint in the output folder.")
    save_interval: int = opt(100, "Steps between two checkpoints; 0 saves only by time and at the end.", low=0)
    save_minutes: float = opt(10.0, "Minutes between two checkpoints; 0 saves only by steps.", low=0.0)
    max_checkpoints: int = opt(3, "Newest checkpoints to keep.", low=1)
    checkpoint_budget_gb: float = opt(50.0, "Disk that checkpoints may take; the oldest go first.", low=0.001)
    log_interval: int = opt(10, "Steps between two rows of metrics.jsonl.", low=1)
    sample_interval: int = opt(200, "Steps between two text samples; 0 for only one at the end.", low=0)
    sample_tokens: int = opt(64, "Length of a text sample in tokens.", low=1)
    eval_interval: int = opt(200, "Steps between two validations (val_bpb); 0 for only one at the end.", low=0)
    crash_report_enabled: bool = opt(True, "Write errors/crash_*.json when the run fails.")
    wandb: Literal["off", "offline", "online"] = opt(
        "off", "Copy metrics.jsonl to Weights & Biases from a side process."
    )
