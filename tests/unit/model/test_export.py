from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sigma.memory.instant import patch
from sigma.model import weights
from sigma.model.modeling import SigmaForCausalLM

ROOT = Path(__file__).resolve().parents[3]
FRESH_PROCESS = """
import sys
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
import sigma.model.modeling
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder)
assert type(model).__name__ == "SigmaForCausalLM" and not model.training
logits = model(load_file(folder + "/ids.safetensors")["ids"]).logits
save_file({"logits": logits.detach().contiguous()}, folder + "/logits.safetensors")
"""


def test_a_fresh_offline_process_computes_the_same_bits(tiny_model, random_ids, tmp_path):
    model, ids = tiny_model(quant_mode="bitnet_1_58"), random_ids(2, 9)
    with torch.no_grad():
        logits = model(ids).logits
    model.save_pretrained(tmp_path)
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels"))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], logits)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_saving_and_loading_keeps_every_bit(tiny_model, random_ids, tmp_path, ratio, tied):
    model, ids = tiny_model(tie_word_embeddings=tied, **ratio), random_ids(2, 9)
    model.model.layers[0].moe.router.selection_bias += torch.tensor([0.5, -0.5, 0.1, 0.0])
    model.save_pretrained(tmp_path)
    loaded = SigmaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) == (not tied)
    assert not any(name.endswith((".codes", ".scale")) for name in stored), "quantised weights are derived, not saved"
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_loaded_weights_lie_where_new_ones_would(tiny_model, tmp_path):
    """Weights left in the mapped file are not aligned: products of them can differ in the last bit."""
    tiny_model().save_pretrained(tmp_path)
    loaded = SigmaForCausalLM.from_pretrained(tmp_path)
    assert {p.data_ptr() % 64 for p in loaded.parameters()} == {0}


def test_what_a_file_has_is_not_drawn_again_where_it_lacks_another_part(tiny_model, tmp_path, monkeypatch):
    model, seed = tiny_model(), weights._generator
    model.save_pretrained(tmp_path)
    parts = load_file(tmp_path / "model.safetensors")
    for name in [name for name in parts if name.endswith("selection_bias")]:
        del parts[name]
    save_file(parts, tmp_path / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(weights, "_generator", lambda *args: (time.sleep(0.01), seed(*args))[1])  # a slow thread
    loaded = SigmaForCausalLM.from_pretrained(tmp_path)
    redrawn = [name for name, value in loaded.named_parameters() if not torch.equal(value, model.get_parameter(name))]
    assert redrawn == []


def test_state_of_routers_that_a_file_lacks_begins_anew(tiny_model, tmp_path):
    model = tiny_model()
    fresh = {name: value.clone() for name, value in model.named_buffers()}
    for value in model.buffers():
        value.add_(7)
    model.save_pretrained(tmp_path)
    parts = load_file(tmp_path / "model.safetensors")
    lost = [name for name in parts if name.endswith(("selection_bias", "entropy_ema"))]
    save_file({k: v for k, v in parts.items() if k not in lost}, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = SigmaForCausalLM.from_pretrained(tmp_path)
    assert lost
    for name, value in loaded.named_buffers():
        assert torch.equal(value, fresh[name] if name in lost else fresh[name] + 7), name


def test_an_export_does_not_ask_for_instant(tiny_model, random_ids, tmp_path):
    model = tiny_model(instant_enabled=True)
    model.save_pretrained(tmp_path)
    assert model.config.instant_enabled, "saving changed the model in memory"
    assert json.loads((tmp_path / "config.json").read_text())["instant_enabled"] is False
    SigmaForCausalLM.from_pretrained(tmp_path)(random_ids(1, 4))


def test_loading_with_instant_patches_the_model(tiny_model, random_ids, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    loaded = SigmaForCausalLM.from_pretrained(tmp_path, instant_enabled=True).train()
    assert loaded.config.instant_enabled
    loaded(random_ids(1, 4), labels=random_ids(1, 4)).loss.backward()


def test_a_patched_model_saves_and_loads(tiny_model, random_ids, tmp_path):
    model, ids = tiny_model(instant_enabled=True), random_ids(1, 5)
    patch(model)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(SigmaForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_the_tokens_to_suppress_are_exported(tiny_config, tmp_path):
    SigmaForCausalLM(tiny_config(tokenizer_vocab_size=61)).save_pretrained(tmp_path)
    assert SigmaForCausalLM.from_pretrained(tmp_path).generation_config.suppress_tokens == [61, 62, 63]
