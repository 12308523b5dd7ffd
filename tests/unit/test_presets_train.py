"""Every preset at an eighth of its width: it starts uniform and every parameter learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sigma.build import build_model, stream_of
from sigma.config.presets import PRESETS, resolve
from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma.data.tokenizer import load_tokenizer
from sigma.memory.instant import patch
from sigma.model.modeling import SigmaForCausalLM
from sigma.optim.build import build_optimizers
from sigma.optim.schedule import learning_rate_scale

TOKENIZER = load_tokenizer("bpe8k")
STEPS = 10


def narrow(preset: str) -> RunConfig:
    """The preset with every width divided by 8; depth, ratios, experts, ranks and learning rates are its own."""
    config = resolve(RunConfig(run=RunSection(preset=preset, device="cpu")), None)  # pyright: ignore[reportArgumentType]
    model = config.model
    widths = {"d_model": 24, "d_ff": 8, "kv_latent_dim": 8, "attention_head_dim": 8, "ssm_head_dim": 8}
    narrowed = {name: max(least // 8 * 8, getattr(model, name) // 8) for name, least in widths.items()}
    return replace(
        config,
        model=replace(model, **narrowed),
        data=replace(config.data, seq_len=64, batch_size=4, micro_batch_size=4, source_prefetch=0),
        train=replace(config.train, steps=STEPS),
    )


def batch_of(config: RunConfig) -> dict[str, torch.Tensor]:
    """The first training batch, as arguments of the model."""
    batch = stream_of(config, TOKENIZER).next_batch()
    return {
        "input_ids": batch.input_ids_BT,
        "shift_labels": batch.labels_BT,
        "segment_ids": batch.segments_BT,
        "cu_seqlens": batch.cu_seqlens,
    }


def backward(model: SigmaForCausalLM, batch: dict[str, torch.Tensor]) -> float:
    loss = model(**batch, use_cache=False).loss
    (loss + model.aux_loss()).backward()
    return loss.item()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_starts_uniform_and_every_parameter_gets_a_gradient_and_moves(preset):
    config = narrow(preset)
    model = build_model(config, TOKENIZER.vocab_size)
    patch(model)
    batch = batch_of(config)
    started = {name: p.detach().clone() for name, p in model.named_parameters()}

    loss = backward(model, batch)
    assert abs(loss / math.log(TOKENIZER.vocab_size) - 1) < 0.05
    assert all(bool((layer.moe.router.load > 0).all()) for layer in model.model.layers), "an expert has no token"
    without = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert without == []

    parameters, roles = dict(model.named_parameters()), model.parameter_roles()
    optimizers = build_optimizers(parameters, roles, config.train, config.optim, config.curvature, config.c3o)
    still = list(started)
    for step in range(1, STEPS + 1):
        optimizers.set_scale(learning_rate_scale(step, STEPS, config.train.warmup_share, config.train.decay_share))
        optimizers.step(torch.zeros(()))
        still = [name for name, p in model.named_parameters() if torch.equal(p, started[name])]
        if not still:
            break
        model.after_update()
        optimizers.zero_grad()
        backward(model, batch)
    assert still == [], f"not moved within {STEPS} steps"
