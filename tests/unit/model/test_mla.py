from __future__ import annotations

import math

import pytest
import torch

from sigma.model.cache import LatentLayer
from sigma.model.layout import plain_layout
from sigma.model.mla import DifferentialMLA
from sigma.model.rope import rotary_angles, rotate

VARIANTS = {
    "NoPE": {},
    "rotary key": {"rope_dim": 6},
    "query latent": {"q_latent_dim": 14},
    "both": {"rope_dim": 6, "q_latent_dim": 14},
}


def positions(batch, length, past=0):
    return torch.arange(past, past + length).expand(batch, length)


def plain(x_BTD, past=0):
    return plain_layout(None, positions(*x_BTD.shape[:2], past), past)


@pytest.fixture
def make_mixer(tiny_config):
    """A mixer with every parameter away from its start."""

    def make(**changes):
        torch.manual_seed(3)
        mixer = DifferentialMLA(tiny_config(**changes)).eval()
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        return mixer

    return make


def by_the_book(mixer, x_BTD):
    """Differential MLA head by head, from the equations."""
    batch, length, _ = x_BTD.shape
    heads, width, rope = mixer.heads, mixer.head_dim, mixer.rope_dim
    query_input = mixer.q_norm(mixer.q_down(x_BTD)) if hasattr(mixer, "q_down") else x_BTD
    queries = mixer.q_up(query_input).view(batch, length, 2 * heads, width + rope)
    latent, rope_key = mixer.kv_down(x_BTD).split([mixer.latent_dim, rope], dim=-1)
    latent = mixer.kv_norm(latent)
    cos, sin = rotary_angles(positions(batch, length), rope, mixer.rope_theta)
    rope_key = rotate(rope_key, cos, sin)
    hidden = torch.full((length, length), -math.inf).triu(1)
    lam = torch.sigmoid(mixer.lambda_proj(x_BTD) + mixer.lambda_logit)
    outputs = []
    for h in range(heads):
        rows = slice(h * width, (h + 1) * width)
        key = torch.cat([latent @ mixer.k_up.weight[rows].T, rope_key], -1)
        value = latent @ mixer.v_up.weight[rows].T
        maps = []
        for q in (queries[:, :, 2 * h], queries[:, :, 2 * h + 1]):
            q = torch.cat([q[..., :width], rotate(q[..., width:], cos, sin)], -1)
            maps.append((q @ key.mT / math.sqrt(width + rope) + hidden).softmax(-1))
        outputs.append((maps[0] - lam[..., h : h + 1] * maps[1]) @ value)
    return mixer.out_proj(mixer.sub_norm(torch.cat(outputs, -1)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_the_equations(make_mixer, variant):
    mixer, x = make_mixer(**VARIANTS[variant]), torch.randn(2, 7, 24)
    torch.testing.assert_close(mixer(x, plain(x)), by_the_book(mixer, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["none", "bitnet_1_58"], ids=["plain", "ternary"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_absorbed_decode_equals_the_expanded_form(make_mixer, variant, mode):
    """Also with ternary weights: the cache holds the latent as the up-projections see it."""
    mixer, x = make_mixer(quant_mode=mode, **VARIANTS[variant]), torch.randn(2, 9, 24)
    expanded, cache = mixer(x, plain(x)), LatentLayer()
    steps = [mixer(x[:, :4], plain(x[:, :4]), cache)]
    absorbed, original = [], mixer._attend_absorbed
    mixer._attend_absorbed = lambda *arguments: absorbed.append(1) or original(*arguments)
    for t in range(4, 9):
        steps.append(mixer(x[:, t : t + 1], plain(x[:, t : t + 1], t), cache))
    assert len(absorbed) == 5, "decoding took another path"
    # the out-projection quantises its input anew: a difference in the last bit may move one int8 code
    tolerance = 1e-5 if mode == "none" else 2e-2
    torch.testing.assert_close(torch.cat(steps, 1), expanded, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_a_ternary_latent_is_quantised_once_for_both_forms(make_mixer):
    mixer = make_mixer(quant_mode="bitnet_1_58")
    latent = torch.randn(2, 5, mixer.latent_dim)
    cached = mixer.k_up.quantized_input(latent)
    assert not torch.equal(cached, latent)
    torch.testing.assert_close(mixer.k_up(cached), mixer.k_up(latent), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(cached @ mixer.k_up.weight_values().T, mixer.k_up(latent), atol=1e-5, rtol=1e-5)


def test_a_pair_of_query_heads_shares_its_key_and_value(make_mixer):
    """Changing the key or value matrix of head 1 changes output head 1 and no other."""
    mixer, x, seen = make_mixer(), torch.randn(1, 6, 24), []
    mixer.sub_norm = torch.nn.Identity()
    mixer.out_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    mixer(x, plain(x))
    with torch.no_grad():
        for up in (mixer.k_up, mixer.v_up):
            up.weight[4:8] += 1
    mixer(x, plain(x))
    changed = (seen[0] - seen[1]).abs().amax((0, 1)).view(3, 4) > 1e-6
    assert changed.tolist() == [[False] * 4, [True] * 4, [False] * 4]


def test_lambda_starts_at_its_initial_value_and_learns(tiny_config):
    torch.manual_seed(0)
    mixer, x = DifferentialMLA(tiny_config(diff_attention_lambda_init=0.2)), torch.randn(2, 6, 24)
    mixer(x, plain(x)).square().sum().backward()
    for statistic in ("mean", "min", "max"):
        assert mixer.lambda_stats[f"diff_attn_lambda_{statistic}"].item() == pytest.approx(0.2, abs=1e-6)
    assert (mixer.lambda_proj.weight.grad.abs().sum(-1) > 0).all(), "a head's lambda has no gradient"


def test_the_second_map_is_subtracted(make_mixer):
    """At lambda near 0 the second query heads have no say; at the usual lambda they have."""
    x = torch.randn(1, 6, 24)
    for init, matters in ((1e-7, False), (0.5, True)):
        mixer = make_mixer(diff_attention_lambda_init=init)
        with torch.no_grad():
            mixer.lambda_proj.weight.zero_()
            before = mixer(x, plain(x))
            mixer.q_up.weight.view(3, 2, 4, 24)[:, 1].neg_()
            assert ((mixer(x, plain(x)) - before).abs().max() > 1e-3) == matters


def test_rotation_keeps_lengths_and_depends_on_the_distance_only():
    q, k = torch.randn(2, 8, dtype=torch.float64)
    at = lambda v, t: rotate(v, *(a[0, 0].double() for a in rotary_angles(torch.tensor([[t]]), 8, 10000.0)))  # noqa: E731
    scores = torch.stack([at(q, 3 + shift) @ at(k, 1 + shift) for shift in (0, 5, 400)])
    torch.testing.assert_close(scores, scores[:1].expand(3), atol=1e-4, rtol=1e-4)
    assert not torch.isclose(at(q, 5) @ at(k, 1), scores[0], atol=1e-2), "the distance has no effect"
    torch.testing.assert_close(at(q, 37).norm(), q.norm(), atol=1e-6, rtol=1e-6)


def test_the_rotary_key_makes_attention_depend_on_distance_and_nope_does_not(make_mixer):
    """Swapping two past tokens changes nothing for the last query without positions, and something with them."""
    x = torch.randn(1, 6, 24)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    for rope, matters in ((0, False), (6, True)):
        mixer = make_mixer(rope_dim=rope)
        last = [mixer(v, plain(v))[:, -1] for v in (x, swapped)]
        assert ((last[0] - last[1]).abs().max() > 1e-4) == matters


def test_only_relative_positions_count(make_mixer):
    mixer, x = make_mixer(rope_dim=6), torch.randn(1, 6, 24)
    shifted = plain_layout(None, positions(1, 6) + 1000, 0)
    torch.testing.assert_close(mixer(x, shifted), mixer(x, plain(x)), atol=1e-4, rtol=1e-4)
