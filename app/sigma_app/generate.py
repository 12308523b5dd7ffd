"""`sigma generate`: the newest sound checkpoint of a run continues a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sigma.config.resolved import RESOLVED_NAME, load_resolved
from sigma.config.root import RunConfig
from sigma.core.errors import ConfigError, MissingRequirementError
from sigma.data.tokenizer import BOS, Tokenizer, load_tokenizer
from sigma.model.configuration import sigma_config_from
from sigma.model.modeling import SigmaForCausalLM
from sigma.train.sample import evaluating, own_randomness
from sigma.train.tensor_file import read_tensors
from sigma.train.verify_checkpoint import TENSORS_SUFFIX, find_newest_valid
from sigma_app.kernel_check import kernel_lines
from sigma_app.session import cuda_memory_gb


def complete(
    run_dir: Path, prompt: str, *, tokens: int, temperature: float, top_k: int, seed: int, device: str = "auto"
) -> str:
    """The prompt and its continuation of up to `tokens` tokens. The same seed on the same device gives the same text.

    Raises ConfigError when the run has no sound checkpoint, MissingRequirementError without the GPU asked for.
    """
    place = choose_device(device)
    model, tokenizer, config = load_model(run_dir)
    if place.type == "cuda":
        list(kernel_lines(config.model))  # a start that trains says the lines; here only their effects are wanted
    model.to(place)  # pyright: ignore[reportArgumentType]
    ids = torch.tensor([[BOS, *tokenizer.encode(prompt).tolist()]], device=place)
    bf16 = config.train.precision == "bf16" and place.type == "cuda"
    with evaluating(model), own_randomness(seed, place), torch.autocast(place.type, torch.bfloat16, enabled=bf16):
        choice: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            choice = {"do_sample": True, "temperature": temperature, "top_k": top_k}
        out = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **choice
        )
    return prompt + tokenizer.decode(out[0, ids.size(1) :].tolist())


def load_model(run_dir: Path) -> tuple[SigmaForCausalLM, Tokenizer, RunConfig]:
    """Model (plain, without the trainer's memory patches), tokenizer and configuration of a run, on the CPU."""
    folder = find_newest_valid(run_dir)
    if folder is None:
        raise ConfigError(f"--run {run_dir}: no sound checkpoint there yet; let the run reach its first save")
    config = load_resolved(run_dir / RESOLVED_NAME)
    tokenizer = load_tokenizer(config.data.tokenizer)
    plain = replace(config, train=replace(config.train, instant_enabled=False))
    model = SigmaForCausalLM(sigma_config_from(plain, tokenizer.vocab_size))
    model.load_state_dict(read_tensors(folder / f"model{TENSORS_SUFFIX}"))
    return model, tokenizer, config


def choose_device(device: str) -> torch.device:
    """The device for a choice of `--device`."""
    usable = device != "cpu" and cuda_memory_gb() is not None
    if device == "cuda" and not usable:
        raise MissingRequirementError("--device cuda: no usable NVIDIA GPU; use --device cpu, or see `sigma doctor`")
    return torch.device("cuda" if usable else "cpu")
