"""The scans that are compared: everybody's computes what its row says, and distances to fp64 are measured right."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
MODULES = ("floors", "peers", "registry", "scan_accuracy", "scan_group", "scan_inputs", "scan_providers")


@pytest.fixture
def bench(monkeypatch) -> SimpleNamespace:
    """The modules of kernels/bench, which are found beside each other when its scripts run."""
    monkeypatch.syspath_prepend(str(BENCH))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})


@pytest.fixture
def tiny(bench):
    """Two groups of heads, T no multiple of anything."""
    return bench.floors.ScanShape(batch=2, steps=13, heads=4, head_size=3, state=8, groups=2)


def turn_interleaved(u_BTHN: Tensor, phase_BTHS: Tensor) -> Tensor:
    """Channels (2i, 2i + 1) as complex numbers, the first S of them turned."""
    u = torch.view_as_complex(u_BTHN.unflatten(-1, (-1, 2)).contiguous())
    pairs = phase_BTHS.shape[-1]
    turned = u[..., :pairs] * torch.polar(torch.ones_like(phase_BTHS), phase_BTHS)
    return torch.view_as_real(torch.cat([turned, u[..., pairs:]], -1)).flatten(-2)


def official_in_words(Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles, D, Z, chunk_size):
    """What the official kernel documents, by the whole T x T matrix in the dtype of V."""
    heads = V.shape[2]
    right = torch.sigmoid(Trap) * DT
    left = torch.cat([((1 - torch.sigmoid(Trap)) * DT)[..., 1:], torch.zeros_like(DT[..., :1])], -1)
    phase = (DT.mT[..., None] * math.pi * torch.tanh(Angles.to(V.dtype))).cumsum(1)
    q, k = (
        turn_interleaved(m.repeat_interleave(heads // m.shape[2], 2) + b, phase) for m, b in ((Q, Q_bias), (K, K_bias))
    )
    total = ADT.cumsum(-1)
    weight = (total[..., :, None] - total[..., None, :]).exp() * (right + left)[..., None, :]
    weight = weight.tril(-1) + torch.diag_embed(right)
    y = torch.einsum("bthn,bshn,bhts,bshp->bthp", q, k, weight, V)
    assert chunk_size == 64
    return (y + D[:, None] * V) * F.silu(Z)


@pytest.fixture
def _stand_ins(bench, monkeypatch):
    """The functions of the peers, written out in PyTorch."""

    def norm(x, weight, bias, eps):
        assert bias is None
        return F.rms_norm(x, weight.shape, weight, eps)

    def gla(q, k, v, g, scale):
        assert scale == 1.0
        return bench.scan_accuracy.linear_scan(q, k, v, g), None

    def mamba2(x, dt, a, b, c, chunk, *, D, z, dt_bias, dt_softplus):
        assert dt_softplus
        state, ys, dt = 0.0, [], F.softplus(dt + dt_bias)
        b, c = (m.repeat_interleave(x.shape[2] // m.shape[2], 2) for m in (b, c))
        for t in range(x.shape[1]):
            step = dt[:, t, :, None, None]
            state = torch.exp(step * a[:, None, None]) * state + step * x[:, t, :, :, None] * b[:, t, :, None]
            ys.append((state * c[:, t, :, None]).sum(-1) + D[:, None] * x[:, t])
        return torch.stack(ys, 1) * F.silu(z)

    for name, function in {
        "mamba3_siso": official_in_words, "mamba_rms_norm": norm, "simple_gla": gla, "mamba2_chunk_scan": mamba2
    }.items():  # fmt: skip
        monkeypatch.setattr(bench.peers, name, lambda function=function: function)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("provider", ["sigma", "mamba3-official", "fla-composed", "mamba2", "fla-simple-gla"])
def test_a_peer_that_computes_what_it_documents_has_no_error(bench, tiny, provider):
    found = bench.scan_accuracy.PROVIDERS[provider](bench.scan_inputs.make_inputs(tiny, "cpu", torch.float64))
    assert len(found) > 4
    # the int32 phase of ours rounds each increment to 2^-33 turn
    assert max(found.values()) < 1e-7, found


@pytest.mark.usefixtures("_stand_ins")
def test_the_official_op_gets_the_inputs_of_its_layer(bench, tiny):
    inputs = bench.scan_inputs.make_inputs(tiny, "cpu", torch.float64)
    op = bench.scan_providers.official(inputs).forward()
    torch.testing.assert_close(op, bench.scan_providers.official_heavy_tail(inputs).forward())
    assert not torch.allclose(op, bench.scan_providers.official_layer(inputs).forward())  # softplus is another decay


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("provider", ["official", "official_layer", "mamba2", "simple_gla", "fla_composed"])
def test_peers_without_mimo_are_skipped_for_it(bench, tiny, provider):
    inputs = bench.scan_inputs.make_inputs(bench.floors.ScanShape(1, 4, 2, 3, 8, rank=2), "cpu")
    with pytest.raises(bench.registry.Skip, match="no rank above 1"):
        getattr(bench.scan_providers, provider)(inputs)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("table", ["OP_ONLY", "LAYER"])
def test_every_case_that_is_not_skipped_runs_in_every_direction(bench, monkeypatch, table, rank):
    make = bench.scan_inputs.make_inputs
    monkeypatch.setattr(bench.scan_group, "make_inputs", lambda shape: make(shape, "cpu", torch.float32))
    shape = bench.floors.ScanShape(1, 6, 2, 3, 8, rank=rank)
    providers = {n: p for n, p in getattr(bench.scan_providers, table).items() if n != "reference-compiled"}
    for group in bench.scan_group.scan_groups([shape], providers):
        for case in group:
            try:
                case.setup()
            except bench.registry.Skip:
                assert rank > 1
                assert case.provider not in ("sigma", "reference-eager")
                continue
            out = case.run()
            if case.direction == "forward+backward":
                assert len(out) == len(case.run._made[0][0].leaves)
            else:
                assert out.shape == (1, 6, 2, 3)
                assert out.requires_grad == (case.direction == "forward")


@pytest.mark.parametrize("rank", [1, 2])
def test_a_layer_around_the_scan_trains_its_projections(bench, rank):
    presets = importlib.import_module("ops.scan_presets")
    shape = bench.floors.ScanShape(1, 6, 2, 3, 8, rank=rank)
    bound = presets.layer(5)(bench.scan_inputs.make_inputs(shape, "cpu", torch.float32))
    y = bound.forward()
    assert y.shape == bound.dy.shape == (1, 6, 5)
    assert all(grad.any() for grad in torch.autograd.grad(y, bound.leaves, bound.dy))


def test_inputs_are_strided_views_of_two_projections_and_all_get_gradients(bench, tiny):
    inputs = bench.scan_inputs.make_inputs(tiny, "cpu")
    rows = {name: t.stride(1) for name, t in inputs.inputs.items()}
    assert set(rows.values()) == {2 * (4 * 3 + 2 * 8), 3 * 4 + 2}
    assert all(leaf.requires_grad and leaf.is_leaf for leaf in inputs.leaves().values())


def test_rounding_of_the_inputs_is_no_error_but_that_of_the_arithmetic_is(bench, tiny):
    found = bench.scan_accuracy.errors("sigma", tiny, torch.bfloat16, "cpu")
    assert 1e-4 < found["y"] < 3e-3  # the output is rounded to bf16
    assert found.keys() == {"y"} | {f"d {n}" for n in bench.scan_inputs.make_inputs(tiny, "cpu").leaves()}


@pytest.mark.parametrize(
    ("tensor", "bf16", "fp32"),
    [("y", 3e-3, 1e-5), ("d x_BTHP", 5e-3, 5e-5), ("d in_BTRGN", 6e-3, 5e-5), ("d out_bias_HRN", 6e-3, 5e-5),
     ("d dt_bias_H", 1e-2, 5e-5), ("d mimo.x_HRP", 1e-2, 5e-5), ("d angle_BTS", 1e-2, 5e-5)],
)  # fmt: skip
def test_gates(bench, tensor, bf16, fp32):
    assert bench.scan_accuracy.gate_of(tensor, torch.bfloat16) == bf16
    assert bench.scan_accuracy.gate_of(tensor, torch.float32) == fp32


def test_relative_l2_and_that_nan_is_within_no_gate(bench):
    relative_l2 = bench.scan_accuracy.relative_l2
    assert relative_l2(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)
    broken = relative_l2(torch.tensor([float("nan")]), torch.tensor([1.0]))
    assert not broken <= bench.scan_accuracy.gate_of("y", torch.bfloat16)


def test_a_row_of_results_has_the_error_of_y_or_the_worst_gradient(bench, monkeypatch):
    monkeypatch.setattr(bench.scan_accuracy, "errors", lambda provider, shape: {"y": 1.0, "d x": 3.0, "d z": 2.0})
    shape = bench.floors.ScanShape(8, 4096, 32)
    assert bench.scan_accuracy.error_of("sigma", shape, "forward") == 1.0
    assert bench.scan_accuracy.error_of("sigma", shape, "forward+backward") == 3.0
    with pytest.raises(bench.registry.Skip, match="not compared"):
        bench.scan_accuracy.error_of("reference-eager", shape, "forward")


def test_shapes_on_the_command_line(bench):
    shape = bench.scan_accuracy.parse_shape("T512,N64,R4")
    assert str(shape) == "B1 T512 H4 P64 N64 R4"
    with pytest.raises(Exception, match="expected sizes like"):
        bench.scan_accuracy.parse_shape("T512,Q3")


def test_a_missing_peer_says_what_to_put_where(bench, monkeypatch, tmp_path):
    bench.peers._stand_in.cache_clear()
    monkeypatch.setattr(bench.peers, "PEERS", tmp_path)
    with pytest.raises(bench.registry.Skip, match=r"unpack the source archive of mamba-ssm"):
        bench.peers.mamba3_siso()
    with pytest.raises(bench.registry.Skip, match=r"no_such_library cannot be imported"):
        bench.peers._import("no_such_library", "scan")


@pytest.mark.skipif(not (BENCH.parents[1] / ".peers" / "mamba_ssm").is_dir(), reason="no peers in .peers")
def test_the_peers_that_are_there_can_be_imported(bench):
    for load in (bench.peers.mamba3_siso, bench.peers.mamba_rms_norm, bench.peers.mamba2_chunk_scan):
        assert callable(load())
