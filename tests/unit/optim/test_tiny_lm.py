"""A two-layer hybrid learns from 100,000 tokens as far as it did when these figures were made.

Mean and standard deviation of the last six losses (nats per byte) over the initial values of seeds 0 to 4, same text.
"""

from __future__ import annotations

import pytest
import torch

from sigma.build import build_model, make_repeatable
from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.data import DataSection
from sigma.config.model import ModelSection
from sigma.config.optim import OptimSection
from sigma.config.presets import resolve
from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma.config.train import TrainSection
from sigma.data.backends import build_stream
from sigma.data.tokenizer import load_tokenizer
from sigma.model.layout import cu_seqlens_of
from sigma.optim.build import build_optimizers
from sigma.optim.schedule import learning_rate_scale

STEPS, ROWS, LENGTH = 49, 32, 64  # 100,352 tokens
WANTED = {"adamw": (2.881, 0.010), "muon": (2.833, 0.018), "normuon": (2.831, 0.019), "adamuon": (2.906, 0.024)}


def config_of(optimizer: str) -> RunConfig:
    model = ModelSection(
        d_model=32, n_layers=2, mamba_ratio=1, attention_ratio=1, ssm_state=8, ssm_head_dim=16, mimo_rank=1,
        ssm_chunk=32, n_heads=2, attention_head_dim=16, kv_latent_dim=16, d_ff=32, n_routed_experts=2, moe_top_k=1,
        n_shared_experts=0, quant_mode="none",
    )  # fmt: skip
    data = DataSection(
        seq_len=LENGTH, batch_size=ROWS, micro_batch_size=ROWS, tokenizer="bytes", source_prefetch=0,
        synthetic_ratio=0.0, code_ratio=0.0,
    )  # fmt: skip
    train = TrainSection(
        steps=STEPS,
        lr=0.02,
        adam_lr=0.01,
        optimizer=optimizer,  # pyright: ignore[reportArgumentType]
        instant_enabled=False,
    )
    return resolve(RunConfig(run=RunSection(device="cpu", seed=0), model=model, data=data, train=train), None)


def last_losses(optimizer: str) -> float:
    config = config_of(optimizer)
    make_repeatable(0, torch.device("cpu"), True)
    tokenizer = load_tokenizer("bytes")
    model = build_model(config, tokenizer.vocab_size)
    parameters = dict(model.named_parameters())
    sections = (config.train, OptimSection(), CurvatureSection(), C3OSection())
    optimizers = build_optimizers(parameters, model.parameter_roles(), *sections)
    stream, losses = build_stream(config.data, 0, tokenizer, ROWS), []
    for number in range(1, STEPS + 1):
        batch = stream.next_batch()
        out = model(
            input_ids=batch.input_ids_BT, shift_labels=batch.labels_BT, segment_ids=batch.segments_BT,
            cu_seqlens=cu_seqlens_of(batch.segments_BT), use_cache=False,
        )  # fmt: skip
        (out.loss + model.aux_loss()).backward()
        losses.append(out.loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.set_scale(learning_rate_scale(number, STEPS, 0.05, 0.5))
        optimizers.step(torch.zeros(()))
        model.after_update()
        optimizers.zero_grad()
    return sum(losses[-6:]) / 6


@pytest.mark.parametrize("optimizer", WANTED)
def test_a_tiny_hybrid_reaches_its_loss_within_three_standard_deviations(optimizer: str) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        mean, deviation = WANTED[optimizer]
        assert last_losses(optimizer) == pytest.approx(mean, abs=3 * deviation)
    finally:
        torch.use_deterministic_algorithms(before)
