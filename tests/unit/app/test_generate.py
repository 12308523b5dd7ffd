"""`sigma generate` on a checkpoint that the test wrote: repeatable, and it uses the newest one that is sound."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sigma.config.parse import Parsed, parse
from sigma.config.presets import resolve_parsed
from sigma.config.resolved import write_resolved
from sigma.core.errors import ConfigError, MissingRequirementError
from sigma.data.tokenizer import load_tokenizer
from sigma.model.configuration import sigma_config_from
from sigma.model.modeling import SigmaForCausalLM
from sigma.train.checkpoint import CheckpointStore
from sigma_app.__main__ import main
from sigma_app.generate import complete, load_model

SIZES = "--d-model=16 --n-layers=2 --mamba-ratio=1 --ssm-state=8 --ssm-head-dim=16 --n-heads=1 --attention-head-dim=8"
MORE = "--kv-latent-dim=8 --d-ff=16 --n-routed-experts=2 --moe-top-k=1 --tokenizer=bytes --device=cpu"
WORDS = {"tokens": 16, "temperature": 1.0, "top_k": 0, "device": "cpu"}


@pytest.fixture
def run(home: Path) -> Path:
    """A run folder with checkpoints of two different models."""
    parsed = resolve_parsed(parse([*SIZES.split(), *MORE.split(), "--output-dir=run"]), None)
    (home / "run").mkdir()
    write_resolved(parsed)
    store = CheckpointStore(home / "run", {"model": "tiny"})
    store.start()
    for step in (1, 2):
        store.save(step, tokens=step, items={}, groups={"model": model_of(parsed, seed=step).state_dict()})
    return home / "run"


def model_of(parsed: Parsed, seed: int) -> SigmaForCausalLM:
    config = replace(parsed.config, run=replace(parsed.config.run, seed=seed))
    return SigmaForCausalLM(sigma_config_from(config, load_tokenizer("bytes").vocab_size))


def test_same_seed_same_text_other_seed_other_text(run: Path):
    texts = [complete(run, "The é", seed=seed, **WORDS) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("The é") for text in texts)


def test_temperature_zero_needs_no_seed(run: Path):
    words = {**WORDS, "temperature": 0.0}
    assert complete(run, "x", seed=1, **words) == complete(run, "x", seed=2, **words)


def test_choice_among_one_token_is_the_likeliest(run: Path):
    greedy = complete(run, "x", seed=1, **{**WORDS, "temperature": 0.0})
    assert complete(run, "x", seed=1, **{**WORDS, "top_k": 1}) == greedy


def test_newest_sound_checkpoint_is_used_and_a_damaged_one_stays_where_it_is(run: Path):
    newest = load_model(run)[0].lm_head.weight.clone()
    weights = run / "checkpoints" / "step-000000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert not torch.equal(load_model(run)[0].lm_head.weight, newest)
    assert weights.exists()


def test_run_without_a_checkpoint_is_a_clear_error(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "checkpoints").rename(run / "gone")
    with pytest.raises(ConfigError, match="no sound checkpoint there yet"):
        load_model(run)


def test_missing_gpu_is_exit_3(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sigma_app.generate.cuda_memory_gb", lambda: None)
    with pytest.raises(MissingRequirementError, match="--device cuda: no usable NVIDIA GPU"):
        complete(run, "x", seed=1, **{**WORDS, "device": "cuda"})
    assert main(["generate", "--run", "run", "--device", "cuda"]) == 3


def test_command_prints_prompt_and_continuation(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "--run", "run", "--prompt", "ab", "--tokens", "4", "--device", "cpu", "--seed", "1"]) == 0
    words = {"tokens": 4, "temperature": 0.8, "top_k": 50, "device": "cpu"}
    assert capsys.readouterr().out == complete(run, "ab", seed=1, **words) + "\n"
