"""The router: selection, balance, information in nats, temperature, and what touches its state."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from sigma.memory import instant
from sigma.model.router import TEMPERATURE_MAX, TEMPERATURE_MIN, Router, RouterSettings, routing_information

EXPERTS, TOP_K, WIDTH = 8, 2, 16


def make(seed: int = 0, logit_std: float | None = None, **settings) -> Router:
    router = Router(WIDTH, EXPERTS, TOP_K, RouterSettings(**settings))
    router.reset_parameters(torch.Generator().manual_seed(seed))
    if logit_std is not None:
        with torch.no_grad():
            router.weight.mul_(logit_std / 0.1)
    return router


def tokens(n: int = 64, seed: int = 1) -> Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def state(router: Router) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in router.state_dict().items()}


def assert_same_state(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert all(torch.equal(got[name], want[name]) for name in want)


# ---- selection and gates


def test_gates_are_the_normalised_sigmoids_of_the_chosen_experts():
    router, x = make(logit_std=1.0), tokens()
    gate_TK, expert_TK = router(x)
    score_TE = torch.sigmoid(x @ router.weight.T)
    chosen = score_TE.gather(1, expert_TK)
    torch.testing.assert_close(gate_TK, chosen / chosen.sum(1, keepdim=True))
    torch.testing.assert_close(chosen, score_TE.topk(TOP_K).values)
    assert gate_TK.dtype == torch.float32


def test_bias_changes_the_selection_but_never_the_value_of_a_gate():
    router, x = make(logit_std=1.0), tokens()
    _, before = router(x)
    router.selection_bias[3] = 10.0
    gate_TK, expert_TK = router(x)
    assert not torch.equal(before, expert_TK)
    assert (expert_TK == 3).any(1).all()
    chosen = torch.sigmoid(x @ router.weight.T).gather(1, expert_TK)
    torch.testing.assert_close(gate_TK, chosen / chosen.sum(1, keepdim=True))


def test_routing_is_fp32_under_autocast_and_for_bf16_inputs():
    router, x = make(logit_std=1.0), tokens().bfloat16()
    want = router(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        got = router(x)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_bias_stays_exact_when_the_model_becomes_bf16():
    router = make()
    router.selection_bias.fill_(0.3001)
    router.to(torch.bfloat16)
    assert router.weight.dtype == torch.bfloat16
    assert router.selection_bias.dtype == router.entropy_ema.dtype == torch.float32
    assert torch.equal(router.selection_bias, torch.full((EXPERTS,), 0.3001))


def test_choosing_more_experts_than_there_are_is_refused():
    with pytest.raises(ValueError, match="3 of 2"):
        Router(WIDTH, 2, 3)


# ---- balance


def test_balance_steps_by_the_sign_of_the_load_of_all_micro_batches():
    router, x = make(logit_std=1.0, balance_lr=0.25), tokens(96)
    chosen = torch.cat([router(part)[1] for part in x.split(32)])
    load = torch.bincount(chosen.flatten(), minlength=EXPERTS)
    assert load.sum() == 96 * TOP_K
    assert torch.equal(router.load, load)
    router.after_update()
    assert torch.equal(router.selection_bias, 0.25 * torch.sign(load.float().mean() - load))
    assert router.load.sum() == 0


def test_a_skewed_router_becomes_balanced():
    router, x = make(logit_std=0.5, balance_lr=0.004), tokens(1024)  # the sign rule ends in a cycle of this step
    x[:, 0] = 1
    with torch.no_grad():
        router.weight[:, 0] = torch.linspace(-2, 2, EXPERTS)
    worst = []
    for _ in range(300):
        router(x)
        router.after_update()
        worst.append(router.metrics()["moe_max_violation"].item())
    assert worst[0] > 1.5
    assert max(worst[-10:]) < 0.2
    assert router.metrics()["moe_dead_experts"] == 0


def test_without_balancing_the_skew_stays():
    router, x = make(logit_std=0.5, balance_lr=0.0), tokens(512)
    with torch.no_grad():
        router.weight[2:] -= 4 * router.weight[2:].abs().max()
    x = x.abs()
    for _ in range(3):
        router(x)
        router.after_update()
    assert router.metrics()["moe_max_violation"] > 1.5
    assert router.metrics()["moe_dead_experts"] > 0


def test_an_update_without_tokens_changes_nothing():
    router = make()
    before = state(router)
    router.after_update()
    assert_same_state(state(router), before)


# ---- what touches the state


def test_a_training_forward_touches_the_counts_only():
    router = make(logit_std=1.0)
    before = state(router)
    router(tokens())
    after = state(router)
    for name in ("selection_bias", "entropy_ema", "weight"):
        assert torch.equal(after[name], before[name])
    assert after["load"].sum() == 64 * TOP_K
    assert after["entropy_sum"] > 0


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_evaluation_does_not_mutate(mode):
    router = make(logit_std=1.0)
    router(tokens())
    router.after_update()
    router(tokens(seed=2))
    before, metrics, loss = state(router), router.metrics(), router.aux_loss().item()
    if mode == "eval":
        router.eval()(tokens(seed=3))
    else:
        with torch.no_grad():
            router(tokens(seed=3))
    assert_same_state(state(router), before)
    assert {k: v.item() for k, v in router.metrics().items()} == {k: v.item() for k, v in metrics.items()}
    probed = router.aux_loss().item()
    if mode == "no_grad":  # a probe: the losses are those of its own forward
        router(tokens(seed=3))
    assert (probed, probed == loss) == (router.aux_loss().item(), mode == "eval")


def test_saving_and_loading_keeps_bias_and_entropy_and_continues_equally():
    router = make(logit_std=1.0)
    router(tokens())
    router.after_update()
    loaded = make(seed=9)
    loaded.load_state_dict(state(router))
    assert loaded.selection_bias.abs().sum() > 0
    for one in (router, loaded):
        one(tokens(seed=4))
        one.after_update()
    assert_same_state(state(loaded), state(router))


def test_padding_is_routed_but_counts_in_no_statistic():
    router, x = make(logit_std=1.0), tokens(48)
    valid = torch.arange(48) % 3 > 0
    padded = x.clone()
    padded[~valid] = 100.0
    gates, _ = router(padded, valid)
    with_padding = (state(router), router.metrics(), router.aux_loss())
    alone = make(logit_std=1.0)
    alone(x[valid])
    assert gates.shape == (48, TOP_K)
    assert torch.equal(with_padding[0]["load"], alone.load)
    torch.testing.assert_close(with_padding[0]["entropy_sum"], alone.entropy_sum)
    torch.testing.assert_close(with_padding[2], alone.aux_loss())
    for name, value in alone.metrics().items():
        torch.testing.assert_close(with_padding[1][name], value, msg=name)


def test_only_padding_gives_finite_zeros():
    router = make()
    router(tokens(4), torch.zeros(4, dtype=torch.bool))
    router.aux_loss().backward()
    assert router.aux_loss() == 0
    assert torch.isfinite(router.weight.grad).all()


def test_a_router_can_be_copied_after_a_forward():
    router = make()
    router(tokens())
    copied = copy.deepcopy(router)
    assert torch.equal(copied.load, router.load)
    assert copied.aux_loss() == 0


# ---- information


def information(p: list[list[float]]) -> tuple[float, float, float]:
    found = routing_information(torch.tensor(p, dtype=torch.float64))
    return found.marginal.item(), found.conditional.item(), found.mutual.item()


def test_uniform_routing_tells_nothing():
    marginal, conditional, mutual = information([[0.25] * 4] * 3)
    assert marginal == pytest.approx(math.log(4))
    assert conditional == pytest.approx(math.log(4))
    assert mutual == pytest.approx(0, abs=1e-12)


def test_balanced_one_hot_routing_tells_ln_e():
    marginal, conditional, mutual = information(torch.eye(4).tolist() * 2)
    assert (marginal, mutual) == (pytest.approx(math.log(4)), pytest.approx(math.log(4)))
    assert conditional == pytest.approx(0, abs=1e-9)


def test_collapsed_routing_has_no_entropy_at_all():
    marginal, conditional, mutual = information([[0, 1, 0, 0]] * 5)
    assert (marginal, conditional, mutual) == (pytest.approx(0, abs=1e-9),) * 3


def test_information_equals_the_sum_over_the_joint_distribution():
    p = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    weight = torch.tensor([1, 0, 1, 1, 0, 1])
    kept = p[weight.bool()]
    want = sum((row * (row / kept.mean(0)).log()).sum() for row in kept) / 4
    assert routing_information(p, weight).mutual.item() == pytest.approx(want.item())


@pytest.mark.parametrize(
    "logits, retained, compression, collapse",
    [("uniform", 0.0, 1.0, 0.0), ("balanced", 1.0, 0.0, 0.0), ("collapsed", 0.0, 0.0, 1.0)],
)
def test_metrics_and_loss_of_known_routings(logits, retained, compression, collapse):
    router = Router(EXPERTS, EXPERTS, TOP_K, RouterSettings(collapse_penalty=0.5, info_weight=0.25))
    weight = {
        "uniform": torch.zeros(EXPERTS, EXPERTS),
        "balanced": 60 * torch.eye(EXPERTS),
        "collapsed": 60 * nn.functional.one_hot(torch.zeros(EXPERTS, dtype=torch.int64), EXPERTS).T.float(),
    }[logits]
    with torch.no_grad():
        router.weight.copy_(weight)
    router(torch.eye(EXPERTS))
    metrics = {name: value.item() for name, value in router.metrics().items()}
    assert metrics["rib_retained_info"] == pytest.approx(retained, abs=1e-5)
    assert metrics["rib_compression"] == pytest.approx(compression, abs=1e-5)
    assert metrics["rib_collapse"] == pytest.approx(collapse, abs=1e-5)
    assert metrics["rib_aux_loss"] == pytest.approx(-0.5 * (1 - collapse) + 0.25 * compression, abs=1e-5)
    assert router.aux_loss().item() == pytest.approx(metrics["rib_aux_loss"] + metrics["router_z_loss"])


def test_z_loss_is_the_mean_square_of_the_log_normaliser():
    router, x = make(logit_std=1.0, z_weight=0.1), tokens()
    router(x)
    want = 0.1 * (x @ router.weight.T).logsumexp(-1).square().mean()
    torch.testing.assert_close(router.metrics()["router_z_loss"], want)


def test_switching_rib_off_leaves_the_z_loss_alone():
    on, off, x = make(logit_std=1.0), make(logit_std=1.0, rib_enabled=False), tokens()
    assert torch.equal(on(x)[0], off(x)[0])
    assert off.metrics()["rib_aux_loss"] == 0
    assert torch.equal(off.aux_loss(), off.metrics()["router_z_loss"])
    assert off.metrics()["router_temperature"] == 1
    assert not torch.equal(on.aux_loss(), off.aux_loss())


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3], ids=["uniform", "normal", "saturated"])
def test_the_gradient_of_the_rib_loss_is_bounded(scale):
    settings = RouterSettings(collapse_penalty=1.0, info_weight=1.0, z_weight=0.0)
    router = Router(WIDTH, EXPERTS, TOP_K, settings)
    router.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        router.weight.mul_(scale / 0.1)
    x = tokens()
    router(x)
    router.aux_loss().backward()
    assert -1 <= router.aux_loss().item() <= 1
    assert torch.isfinite(router.weight.grad).all()
    bound = 30 * x.abs().mean() / math.log(EXPERTS) / TEMPERATURE_MIN  # ln(1e-12) is -27.6
    assert router.weight.grad.abs().max() <= bound
    if scale == 0:
        assert router.weight.grad.abs().max() < 1e-6


def test_following_the_rib_loss_raises_the_information():
    router = make(collapse_penalty=1.0, info_weight=1.0, z_weight=0.0)
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(5)).repeat(8, 1)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    seen = []
    for _ in range(60):
        router(x)
        optimizer.zero_grad()
        router.aux_loss().backward()
        optimizer.step()
        seen.append(router.metrics()["rib_retained_info"].item())
    assert seen[0] < 0.05
    assert seen[-1] > 0.8


# ---- temperature


def test_sharper_routing_gives_a_higher_temperature_within_its_bounds():
    router = make()
    found = []
    for ema in (1.0, 0.6, 0.3, 0.0):
        router.entropy_ema.fill_(ema)
        found.append(router.temperature().item())
    assert found == sorted(found)
    assert found[0] == pytest.approx(TEMPERATURE_MIN)
    assert found[1] == pytest.approx(1 + 0.55 * (math.log(TOP_K) / math.log(EXPERTS) - 0.6))
    assert make(temp_gain=2.0).temperature() == pytest.approx(TEMPERATURE_MIN)
    strong = make(temp_gain=2.0)
    strong.entropy_ema.zero_()
    assert strong.temperature() == pytest.approx(TEMPERATURE_MAX)


def test_temperature_shapes_the_loss_and_not_the_output():
    x = tokens()
    cold, warm = make(logit_std=2.0), make(logit_std=2.0)
    warm.entropy_ema.zero_()
    assert torch.equal(cold(x)[0], warm(x)[0])
    assert warm.metrics()["router_temperature"] > cold.metrics()["router_temperature"]
    assert warm.metrics()["rib_compression"] > cold.metrics()["rib_compression"]
    assert not torch.equal(warm.aux_loss(), cold.aux_loss())


@pytest.mark.parametrize("logit_std", [0.1, 1.0, 4.0])
def test_temperature_settles_without_oscillation(logit_std):
    router, x = make(logit_std=logit_std, temp_gain=2.0), tokens(256)
    seen = []
    for _ in range(120):
        router(x)
        router.after_update()
        seen.append(router.entropy_ema.item())
    steps = [b - a for a, b in itertools.pairwise(seen)]
    assert abs(steps[-1]) < 1e-5
    assert all(step < 1e-6 for step in steps)  # from the uniform start it only falls: no overshoot
    assert TEMPERATURE_MIN <= router.temperature().item() <= TEMPERATURE_MAX


def test_entropy_is_smoothed_over_the_tokens_of_all_micro_batches():
    router, x = make(logit_std=3.0), tokens(96)
    weighted = 0.0
    for part in (x[:64], x[64:]):
        router(part)
        weighted += router.metrics()["rib_compression"].item() * len(part)
    router.after_update()
    assert router.entropy_ema.item() == pytest.approx(0.9 * 1 + 0.1 * weighted / 96, abs=1e-6)


def test_one_expert_is_legal_and_has_nothing_to_tell():
    router = Router(WIDTH, 1, 1)
    gate, expert = router(tokens())
    router.after_update()
    assert torch.equal(gate, torch.ones(64, 1))
    assert expert.sum() == 0
    assert all(torch.isfinite(v) for v in router.metrics().values())
    assert router.metrics()["rib_collapse"] == 0


# ---- INSTANT


def test_the_output_of_a_region_is_not_kept_for_the_router():
    class Normed(nn.Module):
        instant_regions = ("norm",)

        def __init__(self):
            super().__init__()
            self.router = make()

        def forward(self, x):
            return self.router(instant.recompute(self, torch.tanh, x))[0]

    model, x = Normed(), tokens(300).requires_grad_()
    assert instant.patch(model) == 1
    patched = instant.audit_saved_bytes(lambda: model(x), model)
    instant.unpatch(model)
    assert instant.audit_saved_bytes(lambda: model(x), model) == patched  # its output in place of its input, not both
