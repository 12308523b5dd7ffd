from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sigma.memory.instant import patch
from sigma.model import weights
from sigma.model.bitlinear import QuantizedWeight
from sigma.model.modeling import SigmaForCausalLM, SigmaModel
from sigma_kernels import counters

STACKS = {
    "3:1": {},
    "1:0 SISO": {"attention_ratio": 0, "mimo_rank": 1},
    "0:1 rotary": {"mamba_ratio": 0, "rope_dim": 6, "q_latent_dim": 12},
    "3:1 ternary": {"quant_mode": "bitnet_1_58"},
    "untied": {"tie_word_embeddings": False},
}


@pytest.fixture(params=list(STACKS))
def stack(request):
    return STACKS[request.param]


@torch.no_grad()
def test_no_token_sees_the_future(tiny_model, random_ids, stack):
    model, ids = tiny_model(**stack), random_ids(1, 12)
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 5) % 61 + 3
    before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-5, rtol=0)
    assert ((before[:, 7:] - after[:, 7:]).abs().amax(-1) > 1e-3).all()


def test_the_last_token_hears_of_tokens_before_its_predecessor(tiny_model, random_ids, ratio):
    model = tiny_model(num_hidden_layers=1, **ratio)
    embeds = model.get_input_embeddings()(random_ids(1, 9)).detach().requires_grad_()
    model(inputs_embeds=embeds).logits[0, -1].square().sum().backward()
    assert (embeds.grad[0, :-2].abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("mode, tolerance", [("none", 1e-5), ("bitnet_1_58", 2e-2)], ids=["plain", "ternary"])
@torch.no_grad()
def test_a_prefix_has_the_logits_of_the_whole(tiny_model, random_ids, ratio, mode, tolerance):
    model, ids = tiny_model(quant_mode=mode, **ratio), random_ids(2, 11)
    whole = model(ids).logits
    for length in range(1, 11):
        torch.testing.assert_close(model(ids[:, :length]).logits, whole[:, :length], atol=tolerance, rtol=tolerance)


def test_training_and_evaluation_compute_the_same(tiny_model, random_ids, stack):
    model, ids = tiny_model(**stack), random_ids(2, 9)
    assert torch.equal(model.eval()(ids, use_cache=False).logits, model.train()(ids).logits)


def test_every_parameter_gets_a_gradient(tiny_model, random_ids, stack):
    model = tiny_model(**stack).train()
    ids = random_ids(4, 32)
    model(ids, labels=ids).loss.backward()
    assert all((layer.moe.router.load > 0).all() for layer in model.model.layers), "an expert saw no token"
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_every_parameter_gets_a_gradient_from_its_initial_value_too(tiny_config, random_ids):
    model = SigmaForCausalLM(tiny_config(quant_mode="bitnet_1_58"))
    ids = random_ids(4, 32)
    (model(ids, labels=ids).loss + model.aux_loss()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("mode, tolerance", [("none", 1e-5), ("bitnet_1_58", 2e-2)], ids=["plain", "ternary"])
@torch.no_grad()
def test_cached_decoding_equals_the_uncached_forward(tiny_model, random_ids, ratio, mode, tolerance):
    """A prompt, a second prompt of several tokens, then single tokens."""
    model, ids = tiny_model(quant_mode=mode, rope_dim=6, **ratio), random_ids(2, 12)
    whole = model(ids, use_cache=False).logits
    outputs = model(ids[:, :4], use_cache=True)
    logits, cache = [outputs.logits], outputs.past_key_values
    for start, end in ((4, 7), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12)):
        logits.append(model(ids[:, start:end], past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=tolerance, rtol=tolerance)
    assert torch.equal(torch.cat(logits, 1).argmax(-1), whole.argmax(-1))


def test_a_forward_that_fills_a_cache_has_the_same_gradients(tiny_model, random_ids, ratio):
    model, ids, gradients = tiny_model(**ratio), random_ids(2, 6), []
    for use_cache in (False, True):
        model(ids, labels=ids, use_cache=use_cache).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)


def test_training_behind_a_cache_is_refused(tiny_model, random_ids):
    model = tiny_model()
    with torch.no_grad():
        cache = model(random_ids(1, 4), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="a cache carries no gradient"):
        model.train()(random_ids(1, 2), past_key_values=cache, use_cache=True)


def test_only_inference_caches_by_itself(tiny_model, random_ids):
    model, ids = tiny_model(), random_ids(1, 4)
    assert model(ids).past_key_values is None
    with torch.no_grad():
        assert model(ids).past_key_values.get_seq_length() == 4


def test_packed_documents_train_like_separate_ones(tiny_model, random_ids, ratio):
    """Logits of every document, and the gradients of a sum over all of them. Row 1 ends in padding."""
    model, ids = tiny_model(**ratio).double().train(), random_ids(2, 10)
    segments = torch.tensor([[0] * 3 + [1] * 7, [0] * 4 + [1] * 4 + [-1] * 2], dtype=torch.int32)
    spans = [(0, 0, 3), (0, 3, 10), (1, 0, 4), (1, 4, 8)]
    weight = torch.randn(2, 10, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    packed = model(ids, segment_ids=segments).logits
    sum((packed[r, a:b] * weight[r, a:b]).sum() for r, a, b in spans).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for r, a, b in spans:
        alone = model(ids[r : r + 1, a:b]).logits
        torch.testing.assert_close(packed[r : r + 1, a:b], alone, atol=1e-9, rtol=1e-9)
        (alone[0] * weight[r, a:b]).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-9, rtol=1e-9, msg=name)


@torch.no_grad()
def test_segments_and_starts_describe_the_same(tiny_model, random_ids):
    model, ids = tiny_model(), random_ids(2, 6)
    segments, starts = torch.tensor([[0, 0, 1, 1, 1, 1], [0] * 6]), torch.tensor([0, 2, 6, 12], dtype=torch.int32)
    by_segments = model(ids, segment_ids=segments).logits
    assert torch.equal(by_segments, model(ids, cu_seqlens=starts).logits)
    assert torch.equal(by_segments, model(ids, segment_ids=segments, cu_seqlens=starts).logits)


@torch.no_grad()
def test_padding_on_either_side_changes_no_token(tiny_model, random_ids, ratio):
    model, ids = tiny_model(rope_dim=6, **ratio), random_ids(1, 6)
    alone = model(ids).logits
    for padded, mask in (
        (torch.cat([random_ids(1, 3, seed=9), ids], 1), [0, 0, 0] + [1] * 6),
        (torch.cat([ids, random_ids(1, 3, seed=9)], 1), [1] * 6 + [0, 0, 0]),
    ):
        mask = torch.tensor([mask])
        logits = model(padded, attention_mask=mask).logits[mask.bool()]
        torch.testing.assert_close(logits[None], alone, atol=1e-5, rtol=1e-5)


def test_the_three_ways_to_give_labels_agree(tiny_model, random_ids):
    model, ids = tiny_model(), random_ids(2, 7)
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    shifted[0, 2] = -100
    logits = model(ids).logits.reshape(-1, 64)
    expected = F.cross_entropy(logits, shifted.reshape(-1), ignore_index=-100)
    before = counters.get("cross_entropy.forward")
    torch.testing.assert_close(model(ids, shift_labels=shifted).loss, expected)
    assert counters.get("cross_entropy.forward") == before + 1, "the loss that a model is born with"
    aligned = ids.clone()
    aligned[0, 3] = -100
    torch.testing.assert_close(model(ids, labels=aligned).loss, expected)


@torch.no_grad()
def test_nothing_stands_between_the_final_norm_and_the_head(tiny_model, random_ids, stack):
    """The contract of fused losses: they take `last_hidden_state` and the head's weight, not the logits."""
    model, ids = tiny_model(**stack), random_ids(2, 7)
    assert getattr(model, model.base_model_prefix) is model.model
    fused = model.model(ids).last_hidden_state @ model.get_output_embeddings().weight.T
    torch.testing.assert_close(fused, model(ids).logits, atol=1e-6, rtol=1e-6)
    assert not any(hasattr(model.config, name) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))


@torch.no_grad()
def test_only_the_wanted_logits_are_formed(tiny_model, random_ids):
    model, ids = tiny_model(), random_ids(2, 7)
    whole = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=2).logits, whole[:, -2:])
    assert torch.equal(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]])


@torch.no_grad()
def test_hidden_states_are_embedding_layers_and_final_norm(tiny_model, random_ids):
    model, ids = tiny_model(), random_ids(1, 5)
    states = model(ids, output_hidden_states=True).hidden_states
    assert len(states) == 5
    assert torch.equal(states[0], model.model.embed_tokens(ids) * 24**0.5)
    torch.testing.assert_close(model.lm_head(states[-1]), model(ids).logits)


@pytest.mark.parametrize("mode", ["none", "bitnet_1_58"], ids=["plain", "ternary"])
@pytest.mark.parametrize("width, layers, vocab", [(24, 4, 64), (64, 12, 512), (128, 2, 4096)])
@torch.no_grad()
def test_the_first_loss_is_that_of_a_uniform_guess(tiny_config, random_ids, width, layers, vocab, mode):
    model = SigmaForCausalLM(
        tiny_config(hidden_size=width, num_hidden_layers=layers, vocab_size=vocab, quant_mode=mode)
    )
    ids = random_ids(4, 32, vocab=vocab)
    assert model(ids, labels=ids).loss.item() == pytest.approx(math.log(vocab), rel=0.05)


@pytest.mark.parametrize("mode", ["none", "bitnet_1_58"], ids=["plain", "ternary"])
@torch.no_grad()
def test_no_branch_drowns_the_others_at_the_start(tiny_config, random_ids, ratio, mode):
    """Each of the 2 L branches adds about 1 / sqrt(2 L) to the residual stream, so that it ends with about 1."""
    model, added = SigmaForCausalLM(tiny_config(num_hidden_layers=8, hidden_size=96, quant_mode=mode, **ratio)), []
    for layer in model.model.layers:
        for branch in (layer.mixer, layer.moe):
            branch.register_forward_hook(lambda _m, _i, out: added.append(out.square().mean().sqrt().item()))
    model(random_ids(2, 24))
    shares = [rms * math.sqrt(16) for rms in added]
    assert len(shares) == 16
    assert min(shares) > 0.6
    assert max(shares) < 1.7


def test_roles_cover_every_parameter_once(tiny_model, stack):
    model = tiny_model(**stack)
    roles, parameters = model.parameter_roles(), dict(model.named_parameters())
    assert roles.keys() == parameters.keys()
    for name, role in roles.items():
        kind, splits = (role, ()) if isinstance(role, str) else role
        shape = parameters[name].shape
        assert not splits or sum(splits) == shape[-2], name
        assert kind != "experts" or len(shape) == 3, name
        assert kind not in ("hidden", "fused", "embedding", "head", "router") or len(shape) == 2, name
    assert ("lm_head.weight" in roles) == (not model.config.tie_word_embeddings)


def test_roles_name_what_a_parameter_does(tiny_model):
    roles = tiny_model(rope_dim=6, tie_word_embeddings=False).parameter_roles()
    mamba, attention = "model.layers.0.mixer.", "model.layers.3.mixer."
    assert roles["model.embed_tokens.weight"] == "embedding"
    assert roles["lm_head.weight"] == "head"
    assert roles[mamba + "in_proj.weight"] == ("fused", (24, 24, 16, 16))
    assert roles[attention + "kv_down.weight"] == ("fused", (10, 6))
    assert roles[attention + "k_up.weight"] == roles[mamba + "out_proj.weight"] == "hidden"
    assert roles["model.layers.0.moe.up.weight"] == ("experts", (20, 20))
    assert roles["model.layers.0.moe.down.weight"] == "experts"
    for steering in (
        "model.layers.0.moe.router.weight",
        mamba + "control_proj.weight",
        attention + "lambda_proj.weight",
    ):
        assert roles[steering] == "router"
    assert roles[mamba + "mimo_x_HRP"] == roles["model.norm.weight"] == "vector"


def test_every_large_matrix_of_mixers_and_experts_is_ternary(tiny_model):
    model = tiny_model(quant_mode="bitnet_1_58", q_latent_dim=12)
    ternary = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, QuantizedWeight) and m.ternary}
    kinds = {n: r if isinstance(r, str) else r[0] for n, r in model.parameter_roles().items()}
    assert ternary == {n for n, kind in kinds.items() if kind in ("hidden", "fused", "experts")}


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(tiny_config):
    models = []
    for seed in (3, 3, 4):
        torch.rand(7)
        models.append(SigmaForCausalLM(tiny_config(init_seed=seed, tie_word_embeddings=False)).state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert not torch.equal(models[0]["lm_head.weight"], models[2]["lm_head.weight"])
    assert not torch.equal(models[0]["lm_head.weight"], models[0]["model.embed_tokens.weight"])
    deeper = SigmaForCausalLM(tiny_config(init_seed=3, num_hidden_layers=5)).state_dict()
    name = "model.layers.1.mixer.in_proj.weight"
    assert torch.equal(deeper[name], models[0][name]), "another layer changes the layers that were there"


def test_the_number_of_threads_that_draw_changes_no_value(tiny_config, monkeypatch):
    models = []
    for threads in (1, 8):
        monkeypatch.setattr(weights, "MOST_THREADS", threads)
        monkeypatch.setattr(weights.os, "cpu_count", lambda: 8)
        models.append(SigmaForCausalLM(tiny_config(init_seed=3)).state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_every_weight_of_a_model_is_drawn_once(tiny_config, monkeypatch):
    drawn, draw = [], QuantizedWeight.reset_parameters
    monkeypatch.setattr(
        QuantizedWeight, "reset_parameters", lambda self, *args: (drawn.append(id(self.weight)), draw(self, *args))
    )
    model = SigmaForCausalLM(tiny_config())
    assert sorted(drawn) == sorted(id(m.weight) for m in model.modules() if isinstance(m, QuantizedWeight))


def test_a_draw_that_fails_fails_the_model(tiny_config, monkeypatch):
    def fail(module, generator):
        raise MemoryError("no room")

    monkeypatch.setattr(QuantizedWeight, "reset_parameters", fail)
    with pytest.raises(MemoryError, match="no room"):
        SigmaForCausalLM(tiny_config())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(tiny_model, random_ids):
    model, ids = tiny_model().train(), random_ids(2, 8)
    gradients = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        (model(ids, labels=ids).loss + model.aux_loss()).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        model.zero_grad()
    assert all(torch.equal(gradients[0][n], gradients[1][n]) for n in gradients[0])


def test_metrics_summarise_the_layers(tiny_model, random_ids):
    model = tiny_model(mamba_ratio=1).train()
    model(random_ids(2, 8))
    metrics = model.metrics()
    lambdas = [layer.mixer.lambda_stats for layer in model.model.layers[1::2]]
    assert metrics["diff_attn_lambda_min"] == min(v["diff_attn_lambda_min"] for v in lambdas)
    assert metrics["diff_attn_lambda_max"] == max(v["diff_attn_lambda_max"] for v in lambdas)
    assert 0 < metrics["diff_attn_lambda_min"] < metrics["diff_attn_lambda_mean"] < metrics["diff_attn_lambda_max"] < 1
    retained = [layer.moe.metrics()["rib_retained_info"] for layer in model.model.layers]
    torch.testing.assert_close(metrics["rib_retained_info"], torch.stack(retained).mean())


def test_the_auxiliary_loss_is_the_sum_of_the_routers_losses_and_trains_them(tiny_model, random_ids):
    model = tiny_model().train()
    model(random_ids(2, 8))
    loss = model.aux_loss()
    torch.testing.assert_close(loss, sum(layer.moe.aux_loss() for layer in model.model.layers))
    loss.backward()
    assert all(layer.moe.router.weight.grad.abs().sum() > 0 for layer in model.model.layers)


def test_packed_padding_does_not_count_in_the_load(tiny_model, random_ids):
    model = tiny_model().train()
    model(random_ids(1, 6), segment_ids=torch.tensor([[0, 0, 1, 1, -1, -1]]))
    assert [int(layer.moe.router.load.sum()) for layer in model.model.layers] == [4 * 2] * 4


def test_an_update_balances_the_routers_and_begins_a_new_weight_epoch(tiny_model, random_ids):
    model = tiny_model(quant_mode="bitnet_1_58").train()
    model(random_ids(2, 16))
    projection = model.model.layers[0].mixer.in_proj
    codes = projection.codes.clone()
    projection.weight.data.neg_()  # not seen by the version counter
    model.after_update()
    assert any(layer.moe.router.selection_bias.abs().sum() > 0 for layer in model.model.layers)
    model(random_ids(2, 16))
    assert torch.equal(projection.codes, -codes)


def test_instant_must_be_in_place_before_the_first_forward(tiny_model, random_ids):
    model = tiny_model(instant_enabled=True)
    with pytest.raises(RuntimeError, match="has not been patched"):
        model(random_ids(1, 4))
    patch(model)
    model(random_ids(1, 4))


def test_instant_changes_no_bit_of_loss_and_gradients(tiny_model, random_ids, stack):
    ids, results = random_ids(2, 9), []
    for enabled in (False, True):
        model = tiny_model(**stack).train()
        if enabled:
            patch(model)
        loss = model(ids, labels=ids).loss + model.aux_loss()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, ValueError, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": "ids", "segment_ids": "ids", "attention_mask": "ids"}, ValueError, "not both"),
        (
            {"input_ids": "ids", "segment_ids": "ids", "use_cache": True},
            ValueError,
            "packed documents cannot be cached",
        ),
        ({"input_ids": "ids", "past_key_values": "ids", "use_cache": True}, TypeError, "must be a SigmaCache"),
        ({"input_ids": "ids", "output_attentions": True}, ValueError, "never formed"),
    ],
    ids=["no input", "segments and mask", "packed cache", "foreign cache", "attention maps"],
)
def test_arguments_that_contradict_are_refused(tiny_model, random_ids, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_model()(**{name: random_ids(1, 3) if value == "ids" else value for name, value in arguments.items()})


def test_the_base_model_runs_alone(tiny_config, random_ids):
    assert SigmaModel(tiny_config())(random_ids(1, 4)).last_hidden_state.shape == (1, 4, 24)
