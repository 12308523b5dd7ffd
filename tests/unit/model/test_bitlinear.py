"""BitLinear: the step-scoped cache of quantised weights, the initial scale, the plain mode."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from sigma.memory import instant
from sigma.model.bitlinear import (
    BitLinear,
    StaleWeightError,
    initial_std,
    new_weight_epoch,
    ternary_power,
    verify_weight_cache,
)
from sigma_kernels import counters
from sigma_kernels.bitlinear.op import quantize_weight


def ternary(width: int = 12, out: int = 8, **options) -> BitLinear:
    layer = BitLinear(width, out, quant_mode="bitnet_1_58", **options)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_refresh_for_all_forwards_of_an_epoch():
    layer, x = ternary(), tokens(3, 12)
    for epoch in range(1, 4):
        for _ in range(5):
            layer(x)
        assert counters.get("bitlinear.refresh") == epoch
        layer.new_weight_epoch()
    assert counters.get("bitlinear.refresh") + counters.get("bitlinear.cache_hit") == 15
    assert counters.get("bitlinear.quantize_weight") == 3


def test_a_write_through_data_needs_a_new_epoch_and_then_changes_the_forward():
    layer, x = ternary(), tokens(3, 12)
    before = layer(x)
    layer.weight.data.neg_()
    assert torch.equal(layer(x), before)  # the codes are those of the epoch
    with pytest.raises(StaleWeightError, match="new_weight_epoch"):
        layer.verify_cache()
    layer.new_weight_epoch()
    assert torch.equal(layer(x), -before)
    layer.verify_cache()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
def test_training_changes_the_codes_even_if_the_epoch_is_forgotten(optimizer):
    layer, x = ternary(), tokens(30, 12)
    step = optimizer(layer.parameters(), lr=0.5)
    before = layer(x)
    before.square().sum().backward()
    step.step()
    after = layer(x)
    assert not torch.equal(before, after)
    layer.verify_cache()
    assert counters.get("bitlinear.refresh") == 2


def test_a_graph_of_the_last_epoch_keeps_its_codes():
    layer, x = ternary(), tokens(3, 12).requires_grad_()
    y = layer(x)
    codes, scale = quantize_weight(layer.weight.detach())
    layer.weight.data.neg_()
    layer.new_weight_epoch()
    layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (codes * scale).sum(0).expand(3, -1))


@pytest.mark.parametrize("how", ["load", "to", "replace"])
def test_loading_converting_and_replacing_begin_a_new_epoch(how):
    layer, x = ternary(), tokens(3, 12)
    layer(x)
    if how == "load":
        with torch.autograd._unsafe_preserve_version_counter(layer.weight):  # some loaders write this way
            layer.load_state_dict({"weight": -layer.weight.detach()})
    elif how == "to":
        layer.weight.data.neg_()
        layer.to(torch.float64).to(torch.float32)
    else:
        other = nn.Parameter(-layer.weight.detach())
        while other._version < layer.weight._version:
            torch.autograd.graph.increment_version(other)
        layer.weight = other
    y = layer(x)
    layer.verify_cache()
    assert torch.equal(y, ternary_forward(layer.weight, x))


def ternary_forward(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    fresh = BitLinear(x.shape[-1], weight.shape[0], quant_mode="bitnet_1_58")
    fresh.load_state_dict({"weight": weight.detach()})
    return fresh(x)


def test_train_and_eval_compute_the_same_bits():
    layer, x = ternary(), tokens(3, 12)
    with torch.no_grad():
        evaluated = layer.eval()(x)
    assert torch.equal(layer.train()(x), evaluated)


def test_the_state_dict_holds_the_weight_alone_and_copies_work():
    layer, x = ternary(), tokens(3, 12)
    y = layer(x)
    assert set(layer.state_dict()) == {"weight"}
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), y)
        with torch.no_grad():
            copied.weight.neg_()
        assert torch.equal(copied(x), -y)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("mode", ["bitnet_1_58", "none"])
def test_initial_output_has_variance_one(mode):
    layer = BitLinear(768, 1024, quant_mode=mode)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    assert layer(tokens(64, 768)).var().item() == pytest.approx(1, abs=0.03)


def test_initial_std_follows_from_the_power_of_a_ternary_gaussian():
    assert ternary_power() == pytest.approx(0.4393, abs=1e-4)
    assert initial_std(400, "none") == pytest.approx(0.05)
    assert initial_std(400, "bitnet_1_58") == pytest.approx(1.5088 / 20, rel=1e-4)
    full, half = ternary(64, 64), ternary(64, 64, init_scale=0.5)
    torch.testing.assert_close(half.weight, full.weight / 2)


def test_plain_mode_is_a_plain_linear_and_quantises_nothing():
    layer, x = BitLinear(12, 8, quant_mode="none"), tokens(3, 12)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)
    assert torch.equal(layer.weight_values(), layer.weight)
    assert torch.equal(layer.quantized_input(x), x)
    layer.verify_cache()
    assert counters.snapshot() == {}


def test_the_product_is_linear_in_the_values_that_it_sees():
    layer, x = ternary(), tokens(3, 12)
    seen = layer.quantized_input(x)
    torch.testing.assert_close(seen @ layer.weight_values().T, layer(x))
    torch.testing.assert_close(layer.quantized_input(seen), seen, rtol=1e-6, atol=0)
    assert not torch.equal(seen, x)


def test_model_wide_epoch_and_check_reach_every_layer():
    model = nn.Sequential(ternary(), BitLinear(8, 8, quant_mode="none"), ternary(8, 4))
    model(tokens(3, 12))
    assert verify_weight_cache(model) == 2
    model[2].weight.data.neg_()
    with pytest.raises(StaleWeightError):
        verify_weight_cache(model)
    new_weight_epoch(model)
    model(tokens(3, 12))
    assert verify_weight_cache(model) == 2


def test_a_region_in_front_is_not_kept_by_the_product():
    class Normed(nn.Module):
        instant_regions = ("norm",)

        def __init__(self):
            super().__init__()
            self.linear = ternary()

        def forward(self, x):
            return self.linear(instant.recompute(self, torch.tanh, x))

    model, x = Normed(), tokens(30, 12).requires_grad_()
    model(x)  # the cache of the weight exists before anything is measured
    instant.patch(model)
    assert instant.audit_saved_bytes(lambda: model(x), model) == x.nbytes


def test_splits_must_add_up():
    assert BitLinear(4, 6, quant_mode="none", splits=(2, 4)).splits == (2, 4)
    with pytest.raises(ValueError, match="add up to 5"):
        BitLinear(4, 6, quant_mode="none", splits=(2, 3))
