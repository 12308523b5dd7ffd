"""INSTANT M0: fewer bytes, the same bits, and a model that cannot forget it."""

from __future__ import annotations

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sigma.memory import instant
from sigma_kernels import counters
from sigma_kernels.bitlinear.op import linear


class Layer(nn.Module):
    """A residual layer with a norm that feeds two products, and an activation with a norm behind it."""

    instant_regions = ("norm", "activation")

    def __init__(self, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.up = nn.Parameter(torch.randn(2 * hidden, width, generator=torch.Generator().manual_seed(0)) / 4)
        self.side = nn.Parameter(torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / 4)
        self.down = nn.Parameter(torch.randn(width, hidden, generator=torch.Generator().manual_seed(2)) / 4)

    def norm(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:], self.gain)

    def activation(self, up):
        gate, value = up.chunk(2, dim=-1)
        return nn.functional.rms_norm(nn.functional.silu(gate) * value, (gate.shape[-1],))

    def product(self, x, weight):
        with instant.consuming(x):
            return linear(x, weight)

    def forward(self, x):
        normed = instant.recompute(self, self.norm, x)
        up, side = self.product(normed, self.up), self.product(normed.flatten(0, -2), self.side).view_as(x)
        return x + side + self.product(instant.recompute(self, self.activation, up), self.down)


class Net(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.config = SimpleNamespace(instant_enabled=True)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x):
        instant.require_patched(self)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def x():
    return torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(3))


def plain(net):
    """The same network without INSTANT."""
    net = copy.deepcopy(net)
    net.config.instant_enabled = False
    instant.unpatch(net)
    return net


def patched(layers: int = 2):
    net = Net(layers)
    instant.patch(net)
    return net


def bits(net, x, forward=None, autocast=False):
    net.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = net(x) if forward is None else forward(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in net.parameters())]


def assert_same_bits(got, want):
    assert len(got) == len(want)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16-autocast"])
def test_outputs_and_gradients_have_the_same_bits(x, autocast):
    net = patched()
    assert_same_bits(bits(net, x, autocast=autocast), bits(plain(net), x, autocast=autocast))
    assert counters.get("instant.region_forward") == counters.get("instant.recompute") == 4


def test_a_region_runs_again_under_the_autocast_of_its_first_run(x):
    net = patched(layers=1).layers[0]

    def forward(x):
        mixed = instant.recompute(net, lambda x: nn.functional.linear(x, net.side).tanh(), x)
        return net.product(mixed, net.side)

    got = bits(nn.ParameterList([net.side]), x, forward, autocast=True)
    assert counters.get("instant.recompute") == 1
    instant.unpatch(net)
    assert_same_bits(got, bits(nn.ParameterList([net.side]), x, forward, autocast=True))


def test_only_region_inputs_are_kept_and_each_once(x):
    net = patched(layers=1)
    tokens, width, hidden = 21, 16, 24

    def forward(net):
        return instant.audit_saved_bytes(lambda: net(x.clone().requires_grad_()), net)

    # the residual x and the pre-activation; not: norm, its statistics, silu, product, norm
    assert forward(net) == 4 * tokens * (width + 2 * hidden)
    # two products share the norm's output: one storage more, besides what the activation keeps inside
    assert forward(plain(net)) >= 4 * tokens * (2 * width + 4 * hidden)


def test_regions_are_released_by_the_backward_pass_while_the_loss_is_still_held(x):
    net, others = patched(), set(instant._live.values())
    loss = net(x.clone().requires_grad_()).sum()
    regions = [weakref.ref(region) for region in instant._live.values() if region not in others]
    assert len(regions) == 4
    loss.backward()
    assert [region() for region in regions] == [None] * 4
    assert loss.grad_fn is not None


def test_a_second_backward_recomputes_again(x):
    net = patched(layers=1)
    leaf = x.clone().requires_grad_()
    loss = net(leaf).square().sum()
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    second = torch.autograd.grad(loss, leaf)[0]
    assert torch.equal(first, second)
    assert counters.get("instant.recompute") == 4


def test_a_region_fed_by_a_region_keeps_nothing_of_its_own(x):
    net = patched(layers=1).layers[0]

    def chain(x):
        first = instant.recompute(net, net.norm, x)
        return net.product(instant.recompute(net, torch.tanh, first), net.side)

    assert instant.audit_saved_bytes(lambda: chain(x.clone().requires_grad_()), net) == x.nbytes
    got = bits(nn.ParameterList([net.side, net.gain]), x, chain)
    instant.unpatch(net)
    assert_same_bits(got, bits(nn.ParameterList([net.side, net.gain]), x, chain))


def test_a_region_inside_a_region_belongs_to_the_outer_one(x):
    net = patched(layers=1).layers[0]
    outer = lambda x: net.product(instant.recompute(net, net.norm, x), net.side)  # noqa: E731
    got = bits(nn.ParameterList([net.side, net.gain]), x, lambda x: instant.recompute(net, outer, x))
    assert counters.get("instant.region_forward") == counters.get("instant.recompute") == 1
    instant.unpatch(net)
    assert_same_bits(got, bits(nn.ParameterList([net.side, net.gain]), x, outer))


def test_a_region_may_have_several_outputs(x):
    net = patched(layers=1).layers[0]

    def forward(x):
        a, b = instant.recompute(net, lambda x: (x.tanh(), x.sigmoid()), x)
        return net.product(a, net.side) * net.product(b, net.side)

    got = bits(nn.ParameterList([net.side]), x, forward)
    instant.unpatch(net)
    assert_same_bits(got, bits(nn.ParameterList([net.side]), x, forward))


@pytest.mark.parametrize("outer", ["checkpoint", "save_on_cpu"])
def test_other_saved_tensor_hooks_may_stand_around_it(x, outer):
    net = patched()
    want = bits(plain(net), x)
    if outer == "checkpoint":
        got = bits(net, x, lambda x: checkpoint(net, x, use_reentrant=False))
    else:
        with torch.autograd.graph.save_on_cpu():
            got = bits(net, x)
    assert_same_bits(got, want)


def test_an_output_that_was_changed_in_place_is_kept_as_it_is(x):
    net = patched(layers=1).layers[0]

    def forward(x):
        wave = instant.recompute(net, torch.sin, x)
        wave.add_(1)
        return net.product(wave, net.side)

    got = bits(nn.ParameterList([net.side]), x, forward)
    instant.unpatch(net)
    assert_same_bits(got, bits(nn.ParameterList([net.side]), x, forward))


def test_an_input_changed_in_place_before_the_backward_pass_is_refused(x):
    net = patched(layers=1).layers[0]
    inner = (x.clone().requires_grad_()) * 1
    y = net.product(instant.recompute(net, net.norm, inner), net.side)
    inner.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_region_that_does_not_repeat_itself_is_refused(x):
    net = patched(layers=1).layers[0]
    calls = []

    def unsteady(x):
        calls.append(x)
        return x.sin() if len(calls) == 1 else x.sin().cos()

    y = net.product(instant.recompute(net, unsteady, x.clone().requires_grad_()), net.side)
    with pytest.raises(instant.InstantError, match="ran again"):
        y.sum().backward()


def test_without_gradient_nothing_is_recorded(x):
    net = patched()
    with torch.no_grad():
        net(x)
    assert counters.get("instant.region_forward") == 0


def test_a_promise_that_is_not_kept_stops_the_first_forward(x):
    net = Net()
    with pytest.raises(RuntimeError, match=r"instant\.patch"):
        net(x)
    assert instant.patch(net) == 2
    net(x)
    net.layers.append(Layer())  # a layer that came later is not patched
    with pytest.raises(RuntimeError, match=r"instant\.patch"):
        net(x)
    net.config.instant_enabled = False
    net(x)


def test_patching_a_model_without_regions_is_refused():
    with pytest.raises(instant.InstantError, match="instant_regions"):
        instant.patch(nn.Linear(2, 2))


def test_a_patched_model_can_be_copied(x):
    net = patched()
    assert_same_bits(bits(copy.deepcopy(net), x), bits(net, x))
    assert counters.get("instant.recompute") == 8


def test_audit_counts_a_storage_once_and_forgets_graphs_that_are_gone():
    a = torch.ones(10, requires_grad=True)
    b = a * 1
    assert instant.audit_saved_bytes(lambda: (b * b, b[:5] * b[5:])) == b.nbytes
    assert instant.audit_saved_bytes(lambda: (b * b).detach()) == 0
    layer = nn.Linear(10, 10)
    assert instant.audit_saved_bytes(lambda: layer(b), layer) == b.nbytes


def test_a_forward_that_is_thrown_away_leaves_nothing_behind(x):
    net, others = patched(), set(instant._live.values())
    y = net(x.clone().requires_grad_())
    regions = [weakref.ref(region) for region in instant._live.values() if region not in others]
    assert len(regions) == 4
    del y
    gc.collect()
    assert [region() for region in regions] == [None] * 4


@pytest.mark.slow
def test_a_compiled_model_has_the_same_bits_and_leaves_recomputation_to_the_compiler(x):
    net = patched()
    assert_same_bits(bits(net, x, torch.compile(net, backend="aot_eager")), bits(plain(net), x))
    assert counters.get("instant.region_forward") == 0
