from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sigma.model.cache import RecurrentLayer
from sigma.model.layout import packed_layout, plain_layout
from sigma.model.mamba3 import Mamba3Mixer

VARIANTS = {
    "MIMO": {},
    "SISO": {"mimo_rank": 1},
    "two groups": {"ssm_groups": 2},
    "no rotation": {"ssm_rotating_pairs": 0},
    "no pre-gate norm": {"ssm_pre_gate_norm": False},
}


def plain(x_BTD, past=0, attention_mask=None):
    position = torch.arange(past, past + x_BTD.shape[1]).expand(x_BTD.shape[:2])
    return plain_layout(attention_mask, position, past)


@pytest.fixture
def make_mixer(tiny_config):
    """A mixer with every parameter away from its start."""

    def make(**changes):
        torch.manual_seed(3)
        mixer = Mamba3Mixer(tiny_config(**changes)).eval()
        mixer.reset_parameters(torch.Generator().manual_seed(1))
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        return mixer

    return make


def test_the_initial_values_are_those_of_the_paper(tiny_config):
    mixer = Mamba3Mixer(tiny_config(mimo_rank=4, ssm_num_heads=64))
    mixer.reset_parameters(torch.Generator().manual_seed(1))
    dt = F.softplus(mixer.dt_bias_H)
    assert dt.min() >= 0.99e-3
    assert dt.max() <= 1.01e-1
    spread = (dt.log() - dt.log().mean()).std()
    assert 1.0 < spread < 1.7, "log-uniform over a factor of 100 has a standard deviation of 1.33"
    for ones in (mixer.in_bias_HRN, mixer.out_bias_HRN, mixer.skip_H, mixer.mimo_z_HRP, mixer.y_norm_HP):
        assert (ones == 1).all()
    for mean in (mixer.mimo_x_HRP, mixer.mimo_out_HRP):
        assert (mean == 0.25).all()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_steps_continue_the_scan(make_mixer, variant):
    mixer, x, cache = make_mixer(**VARIANTS[variant]), torch.randn(2, 9, 24), RecurrentLayer()
    whole = mixer(x, plain(x))
    parts = [mixer(x[:, :5], plain(x[:, :5]), cache)]
    parts += [mixer(x[:, t : t + 1], plain(x[:, t : t + 1], t), cache) for t in range(5, 9)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 9


@torch.no_grad()
def test_a_second_scan_continues_the_first(make_mixer):
    mixer, x, cache = make_mixer(), torch.randn(2, 11, 24), RecurrentLayer()
    parts = [mixer(part, plain(part, past), cache) for part, past in ((x[:, :4], 0), (x[:, 4:], 4))]
    torch.testing.assert_close(torch.cat(parts, 1), mixer(x, plain(x)), atol=1e-5, rtol=1e-5)


def test_packed_documents_do_not_see_each_other(make_mixer):
    mixer, x = make_mixer(), torch.randn(2, 8, 24)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1]])
    layout = packed_layout(segments, None, torch.arange(8).expand(2, 8))
    packed = mixer(x, layout)
    alone = [mixer(part, plain(part)) for part in (x[:1, :3], x[:1, 3:], x[1:, :6], x[1:, 6:])]
    expected = torch.cat([torch.cat(alone[:2], 1), torch.cat(alone[2:], 1)])
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_left_padding_neither_decays_nor_writes_the_state(make_mixer):
    mixer, x = make_mixer(), torch.randn(1, 5, 24)
    padded = torch.cat([torch.randn(1, 3, 24), x], 1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    cache, cache_padded = RecurrentLayer(), RecurrentLayer()
    out = mixer(x, plain(x), cache)
    out_padded = mixer(padded, plain(padded, attention_mask=mask), cache_padded)
    torch.testing.assert_close(out_padded[:, 3:], out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache_padded.state.state_BHPN, cache.state.state_BHPN, atol=1e-5, rtol=1e-5)
    assert torch.equal(cache_padded.state.phase_BHS, cache.state.phase_BHS)


@torch.no_grad()
def test_a_padded_decode_step_leaves_the_state_alone(make_mixer):
    """A row that is padding at this step (another row of the batch goes on) keeps its state."""
    mixer, x, cache = make_mixer(), torch.randn(2, 4, 24), RecurrentLayer()
    mixer(x, plain(x), cache)
    before = cache.state.state_BHPN.clone()
    step, mask = torch.randn(2, 1, 24), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    mixer(step, plain(step, 4, mask), cache)
    assert torch.equal(cache.state.state_BHPN[1], before[1])
    assert not torch.equal(cache.state.state_BHPN[0], before[0])


def test_the_state_reaches_further_back_than_the_previous_token(make_mixer):
    mixer, x = make_mixer(), torch.randn(1, 12, 24, requires_grad=True)
    mixer(x, plain(x))[0, -1].sum().backward()
    assert (x.grad[0].abs().amax(-1) > 1e-7).all(), "an earlier token has no influence on the last one"


def test_the_rotation_changes_the_result(make_mixer):
    """Without rotating pairs the angle columns are gone; with them they have an effect and a gradient."""
    assert make_mixer(ssm_rotating_pairs=0).control_proj.weight.shape[0] == 12
    mixer, x = make_mixer(ssm_rotating_pairs=4), torch.randn(1, 12, 24)
    before = mixer(x, plain(x))
    before.sum().backward()
    assert (mixer.control_proj.weight.grad[12:].abs().amax(-1) > 0).all()
    with torch.no_grad():
        mixer.control_proj.weight[12:] = 0
    assert (mixer(x, plain(x)) - before).abs().max() > 1e-3
