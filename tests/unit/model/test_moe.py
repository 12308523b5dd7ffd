"""The mixture of experts against a loop over tokens, and what padding, order and evaluation may not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sigma.memory import instant
from sigma.model.configuration import SigmaConfig
from sigma.model.moe import MoE
from sigma_kernels import counters
from sigma_kernels.relu2_gate.op import relu2_gate


def make(mode: str = "none", **options) -> MoE:
    sizes = {"hidden_size": 12, "intermediate_size": 8, "n_routed_experts": 5, "num_experts_per_tok": 2}
    moe = MoE(SigmaConfig(quant_mode=mode, **(sizes | {"num_hidden_layers": 2} | options)))
    for seed, module in enumerate(moe.modules()):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters(torch.Generator().manual_seed(seed))
    return moe


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, 12, generator=torch.Generator().manual_seed(seed))


def one_token_at_a_time(moe: MoE, x: Tensor) -> Tensor:
    """The definition, for plain weights: no sorting, no grouping, no gathering."""
    out = []
    for x_D in x.reshape(-1, x.shape[-1]):
        score_E = torch.sigmoid(moe.router.weight @ x_D)
        chosen = (score_E + moe.router.selection_bias).topk(moe.router.top_k).indices
        y = sum(shared.down.weight @ shared.sub_norm(relu2_gate(shared.up.weight @ x_D)) for shared in moe.shared)
        for e in chosen:
            hidden = moe.sub_norm(relu2_gate(moe.up.weight[e] @ x_D))
            y = y + score_E[e] / score_E[chosen].sum() * (moe.down.weight[e] @ hidden)
        out.append(y)
    return torch.stack(out).view_as(x)


def values_and_gradients(moe: MoE, fn, x: Tensor) -> dict[str, Tensor]:
    moe.zero_grad()
    x = x.clone().requires_grad_()
    y = fn(x)
    (y * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
    return {"y": y.detach(), "x": x.grad} | {name: p.grad.clone() for name, p in moe.named_parameters()}


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_equals_the_loop_over_tokens_in_values_and_all_gradients(shared):
    # in fp64: in fp32 products with other orders of summation differ by more where large terms cancel
    moe, x = make(n_shared_experts=shared).double(), tokens(2, 7).double()
    moe.router.selection_bias.copy_(torch.linspace(-0.05, 0.05, 5))
    got = values_and_gradients(moe, moe, x)
    want = values_and_gradients(moe, lambda x: one_token_at_a_time(moe, x), x)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-10, msg=name)
        assert got[name].abs().sum() > 0, name


@pytest.mark.parametrize("mode", ["none", "bitnet_1_58"])
def test_permuting_the_tokens_permutes_the_output(mode):
    moe, x = make(mode), tokens(23)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(moe(x[order]), moe(x)[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["none", "bitnet_1_58"])
def test_a_token_alone_gets_what_it_gets_in_a_batch(mode):
    moe, x = make(mode).eval(), tokens(9)
    for t in range(9):
        torch.testing.assert_close(moe(x[t : t + 1]), moe(x)[t : t + 1], rtol=1e-5, atol=1e-6)


def test_no_token_is_dropped_however_skewed_the_router_is():
    moe, x = make(), tokens(50)
    moe.router.selection_bias[1] = 100.0  # every token chooses expert 1
    got = moe(x)
    assert moe.router.load.sum() == 50 * 2
    assert moe.router.load[1] == 50
    torch.testing.assert_close(got, one_token_at_a_time(moe, x), rtol=1e-5, atol=1e-5)


def test_train_and_eval_compute_the_same_bits_and_eval_changes_no_state():
    moe, x = make("bitnet_1_58"), tokens(2, 9)
    trained = moe(x)
    before = {name: value.clone() for name, value in moe.state_dict().items()}
    assert torch.equal(moe.eval()(x), trained)
    assert all(torch.equal(value, before[name]) for name, value in moe.state_dict().items())


def test_each_token_is_quantised_once_and_each_weight_once_an_epoch():
    moe, x = make("bitnet_1_58", n_shared_experts=1), tokens(9)
    for _ in range(3):
        moe(x)
    assert counters.get("bitlinear.refresh") == 4
    assert counters.get("bitlinear.cache_hit") == 8
    moe.after_update()
    moe(x)
    assert counters.get("bitlinear.refresh") == 8


def test_an_update_through_data_reaches_the_next_forward():
    moe, x = make("bitnet_1_58"), tokens(9)
    before = moe(x)
    moe.down.weight.data.zero_()
    moe.after_update()
    assert not torch.equal(moe(x), before)


@pytest.mark.parametrize("mode", ["none", "bitnet_1_58"])
def test_every_parameter_receives_a_gradient(mode):
    moe = make(mode)
    found = values_and_gradients(moe, moe, tokens(64))
    assert moe.router.load.min() > 0
    assert [name for name, g in found.items() if g.abs().sum() == 0] == []


def test_padding_changes_neither_the_other_tokens_nor_the_statistics():
    moe, x = make(), tokens(2, 6)
    valid = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    y = moe(x, valid)
    assert moe.router.load.sum() == 10 * 2
    torch.testing.assert_close(y[valid], moe.eval()(x[valid]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["none", "bitnet_1_58"])
def test_instant_keeps_less_and_changes_no_bit(mode):
    moe, x = make(mode, n_shared_experts=1, intermediate_size=64), tokens(2, 40)

    def kept() -> int:
        return instant.audit_saved_bytes(lambda: moe(x.clone().requires_grad_()), moe)

    want, plain = values_and_gradients(moe, moe, x), kept()
    counters.load({})
    assert instant.patch(moe) == 2
    got, patched = values_and_gradients(moe, moe, x), kept()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert counters.get("instant.recompute") == 2
    shared_row, routed_row = 4 * 80 * 64, 4 * 160 * 64  # the hidden width, in bytes
    kept_by_regions = x.nbytes + 2 * shared_row + 2 * routed_row  # the input and the two halves of each pre-activation
    assert patched < kept_by_regions + shared_row  # what the router keeps is less than a single hidden tensor
    assert plain > kept_by_regions + 2 * (shared_row + routed_row)


def test_the_initial_output_of_a_ternary_layer_has_the_planned_scale():
    moe = make("bitnet_1_58", hidden_size=128, intermediate_size=96, n_shared_experts=1, num_hidden_layers=8)
    x = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
    # a shared expert of variance 1 plus two halves of independent experts, all at 1 / (2 * 8)
    assert moe(x).var().item() == pytest.approx((1 + 0.5) / 16, rel=0.1)


@pytest.mark.gpu
def test_cuda_bf16_training_step_never_waits_and_instant_changes_no_bit():
    sizes = {"hidden_size": 64, "intermediate_size": 48, "n_routed_experts": 8}
    moe = make("bitnet_1_58", n_shared_experts=1, **sizes).cuda()
    x = torch.randn(2, 100, 64, generator=torch.Generator().manual_seed(0)).cuda()

    def step() -> dict[str, Tensor]:
        moe.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            y = moe(leaf)
        (y.float().square().sum() + moe.aux_loss()).backward()
        moe.after_update()
        return {"y": y.detach(), "x": leaf.grad} | {name: p.grad.clone() for name, p in moe.named_parameters()}

    step()  # compiles what there is to compile
    saved = {name: value.clone() for name, value in moe.state_dict().items()}
    results = []
    for switch in (instant.unpatch, instant.patch):
        moe.load_state_dict(saved)
        switch(moe)
        fused = torch.cuda.get_device_capability()[0] in (9, 10)
        torch.cuda.set_sync_debug_mode("error" if fused else "default")
        results.append(step())
        torch.cuda.set_sync_debug_mode("default")
    assert counters.get("instant.recompute") == 2
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
