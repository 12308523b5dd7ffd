"""The optimizers on a GPU: kernels against the reference, no wait, CUDA graphs, the same bits, resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sigma.optim.build import OptimizerSet
from sigma_kernels import counters, dispatch
from sigma_kernels.matrix_step.op import momentum_step, row_squares, weight_step
from sigma_kernels.matrix_step.reference import row_squares_reference
from sigma_kernels.orthogonalise.op import orthogonalise
from sigma_kernels.orthogonalise.reference import Products, TorchProducts, direct_form, normalised, polynomials
from tests.kernels.matrix_step_cases import both, close, exact_squares, make_batch, masters, rows_in_layout, scales
from tests.kernels.orthogonalise_cases import polar, random_batch, relative, with_spectrum
from tests.kernels.tolerance import assert_close
from tests.unit.optim.conftest import make_set, same, step, steps_that_never_wait, values

pytestmark = pytest.mark.gpu

FAMILY = ["muon", "normuon", "adamuon"]
WAYS: list[dict[str, Any]] = [
    {},
    {"muon_block_period": 2, "muon_block_rows": 3},
    {"muon_interval": 3, "muon_interval_warmup": 0},
    {"teon_layers": 2},
    {"cautious_weight_decay": True, "momentum_dtype": "int8", "weight_dtype": "bf16_residual"},
    {"momentum_dtype": "bf16"},
]
VARIANTS = [{"optimizer": name, **way} for name in FAMILY for way in WAYS]
PRODUCTS = [
    (1, 1, 1), (3, 5, 70), (2, 64, 64), (2, 70, 33), (3, 300, 65), (2, 768, 1536), (2, 1000, 1001), (3, 72, 40),
    (2, 264, 1000), (3, 1152, 1536),
]  # fmt: skip


LARGER = {"w": (48, 40), "same": (48, 40), "fused": (70, 40), "stack": (3, 40, 24), "embed": (90, 8), "norm": (40,)}
LARGER_ROLES = {
    "w": "hidden", "same": "hidden", "fused": ("fused", (40, 30)), "stack": ("experts", (20, 20)), "embed": "embedding",
    "norm": "vector",
}  # fmt: skip


def triton_products() -> Products:
    """Imported here: the file must be collected where Triton is not installed."""
    from sigma_kernels.orthogonalise.kernel import TritonProducts

    return TritonProducts()


def on_gpu(**flags: Any) -> OptimizerSet:
    return make_set(device="cuda", **flags)


# ---- symmetric products and the orthogonalisation ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_symmetric_products_are_exact_up_to_their_rounding(shape, dtype):
    x = (random_batch(*shape, device="cuda") / shape[-1] ** 0.5).to(dtype)
    products = triton_products()
    gram = products.gram(x)
    assert_close("gram", gram, x.double() @ x.double().mT)
    a, b, c = 4.0, -2.8, 0.5
    r = gram.double()
    want = a * torch.eye(shape[1], dtype=torch.float64, device="cuda") + b * r + c * (r @ r.mT)
    got = products.quadratic(gram, (a, b, c))
    assert_close("quadratic", got, want)
    assert torch.equal(got, products.quadratic(gram, (a, b, c)))


@pytest.mark.parametrize("form", ["direct", "gram"])
@pytest.mark.parametrize("shape", [(3, 40, 60), (2, 512, 512), (2, 512, 2048), (2, 1024, 300), (5, 1, 7)], ids=str)
def test_the_orthogonalisation_is_what_the_polynomials_make_in_float64(shape, form):
    x = random_batch(*shape, device="cuda")
    wide = x if shape[1] <= shape[2] else x.mT
    exact = wide.double() / (wide.double().norm(dim=(1, 2), keepdim=True) * 1.02)
    for a, b, c in polynomials(5):
        r = exact @ exact.mT
        exact = a * exact + (b * r + c * (r @ r)) @ exact
    got = orthogonalise(x, form=form)
    assert got.dtype == torch.float16
    assert relative(got if shape[1] <= shape[2] else got.mT, exact) < 0.05  # a row alone: slopes of 10 near 1


@pytest.mark.parametrize("form", ["auto", "direct", "gram"])
def test_a_hard_spectrum_zeros_and_a_chunked_batch_come_out_right(form, monkeypatch):
    x = torch.cat([with_spectrum(torch.logspace(-2, 0, 200), 200, 600), random_batch(1, 200, 600)]).cuda()
    x = torch.cat([x, torch.zeros_like(x[:1])])
    out = orthogonalise(x, form=form)
    assert relative(out[:2], polar(x[:2])) < 0.25
    assert torch.linalg.svdvals(out[:2].float()).max() < 1.25
    assert not bool(out[2].any())
    monkeypatch.setattr("sigma_kernels.orthogonalise.op.CHUNK", 200 * 600)
    assert relative(orthogonalise(x, form=form)[:2], out[:2]) < 0.02


def test_the_reference_on_the_gpu_is_close_to_the_kernels():
    x = random_batch(3, 256, 700, device="cuda")
    kernels = orthogonalise(x)
    with dispatch.using("reference"):
        assert relative(kernels, orthogonalise(x)) < 0.02


def test_two_orthogonalisations_have_the_same_bits():
    x = random_batch(4, 512, 1024, device="cuda")
    first = orthogonalise(x)
    assert all(torch.equal(first, orthogonalise(x)) for _ in range(3))


# ---- momentum and weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("form", ["nesterov", "average", "sign"])
@pytest.mark.parametrize("shape", [(12, 10), (1, 1), (33, 35), (512, 768)], ids=str)
def test_momentum_equals_the_reference(shape, form, momentum):
    (got, g), (want, w) = both(
        lambda: make_batch(*shape, momentum=momentum, absent=True, device="cuda"),
        lambda b: momentum_step(b.blocks, b.gradients, b.momentum, b.scale, beta=0.95, form=form, dtype=torch.float32),
    )
    close(got.momentum, want.momentum)
    if got.scale is not None:
        close(got.scale, want.scale)
    close(g[0], w[0])
    assert torch.equal(g[1], w[1])


@pytest.mark.parametrize("decay", ["plain", "cautious", "prox", "cautious_prox"])
@pytest.mark.parametrize("kind", [None, "matrix", "row", "column"])
@pytest.mark.parametrize("residual", [False, True], ids=["fp32", "residual"])
@pytest.mark.parametrize("shape", [(12, 10), (33, 35), (256, 384)], ids=str)
def test_weights_equal_the_reference(shape, residual, kind, decay):
    active = torch.tensor([1, 1, 0, 1, 1], dtype=torch.int32, device="cuda")
    (got, _), (want, _) = both(
        lambda: make_batch(*shape, residual=residual, device="cuda"),
        lambda b: weight_step(
            b.blocks, b.weights, b.direction, b.rate, b.decay, active_K=active, scale=scales(b, kind),
            residual_KMN=b.residual, decay=decay, found_inf=torch.zeros((), device="cuda"),
        ),
    )  # fmt: skip
    step = (
        2**-15 if residual else 0.0
    )  # of the residual, at the lower end of an octave: both may round to its two sides
    for a, b in zip(masters(got), masters(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5 + step, atol=1e-6)


def test_gradients_that_move_are_found_and_the_kernels_ran():
    batch, other = make_batch(device="cuda"), make_batch(device="cuda")
    before = counters.get("matrix_step.use_triton")
    for scale in (1.0, 2.0):
        gradients = [None if g is None else g * scale for g in batch.gradients]
        momentum_step(batch.blocks, gradients, batch.momentum, beta=0.0)
    momentum_step(other.blocks, [None if g is None else 2 * g for g in other.gradients], other.momentum, beta=0.0)
    assert torch.equal(batch.momentum, other.momentum)
    assert counters.get("matrix_step.use_triton") == before + 3


# ---- squares of rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 1), (3, 67, 259), (2, 1152, 768), (1, 64, 8192)], ids=str)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_squares_of_rows_equal_the_reference_in_both_layouts(layout, shape, dtype):
    odd = rows_in_layout(layout, *shape, dtype=dtype, device="cuda")
    whole = odd.contiguous() if layout == "rows" else odd.mT.contiguous().mT  # aligned, as a direction is
    before = counters.get("matrix_step.use_triton")
    for x in (odd, whole):
        got = row_squares(x)
        assert_close("squares", got, exact_squares(x))
        torch.testing.assert_close(got, row_squares_reference(x), rtol=1e-5, atol=0)
        assert torch.equal(got, row_squares(x)), "two runs have the same bits"
    assert counters.get("matrix_step.use_triton") == before + 4


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_squares_of_rows_in_a_cuda_graph_follow_their_matrices(layout):
    x = rows_in_layout(layout, 2, 70, 300, device="cuda")
    row_squares(x)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = row_squares(x)
    x.mul_(2)
    graph.replay()
    assert_close("squares", got, exact_squares(x))


# ---- whole steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_a_step_never_waits_for_the_device(flags):
    optimizers = on_gpu(**flags)
    step(optimizers, 1)
    steps_that_never_wait(optimizers)


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_kernels_and_reference_take_nearly_the_same_steps(flags):
    found = {}
    for backend in ("triton", "reference"):
        with dispatch.using(backend):
            optimizers = on_gpu(**flags, shapes=LARGER, roles=LARGER_ROLES)
            before = values(optimizers)
            for seed in (1, 2, 3):
                step(optimizers, seed)
            found[backend] = {name: p.float() - before[name].float() for name, p in values(optimizers).items()}
    # AdaMuon's first step is the sign of every element of the polar factor, and some are too near zero to tell
    bound = 0.4 if flags["optimizer"] == "adamuon" else 0.05
    for name, moved in found["reference"].items():
        assert relative(found["triton"][name], moved) < bound, name


@pytest.mark.parametrize("flags", VARIANTS, ids=str)
def test_two_runs_and_a_resume_have_the_same_bits(flags):
    first, second, third = on_gpu(**flags), on_gpu(**flags), on_gpu(**flags, seed=5)
    for seed in (1, 2, 3):
        step(first, seed)
        step(second, seed)
    assert same(values(first), values(second))
    assert same(first.tensors(), second.tensors())
    for name, p in third.parameters.items():
        p.data.copy_(first.parameters[name])
    third.load_tensors({key: tensor.cpu() for key, tensor in first.tensors().items()})
    third.load_state_dict(first.state_dict())
    for seed in (4, 5):
        step(first, seed)
        step(third, seed)
    assert same(values(first), values(third))


@pytest.mark.parametrize("flags", [{"optimizer": name} for name in [*FAMILY, "adamw"]] + [VARIANTS[10]], ids=str)
def test_a_step_in_a_cuda_graph_equals_an_eager_one_and_follows_rate_and_skip(flags):
    captured, eager = on_gpu(**flags), on_gpu(**flags)
    found_inf = torch.zeros((), device="cuda")
    for optimizers in (captured, eager):
        for seed in (1, 2):
            step(optimizers, seed)
    for p in captured.parameters.values():
        assert p.grad is not None
    captured.step(found_inf)  # finds the gradients where they will stay
    eager.step(found_inf)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step(found_inf)
    for seed, scale, skip in ((3, 1.0, 0.0), (4, 0.3, 0.0), (5, 1.0, 1.0), (6, 0.7, 0.0)):
        generator = torch.Generator().manual_seed(seed)
        for mine, theirs in zip(captured.parameters.values(), eager.parameters.values(), strict=True):
            value = torch.randn(mine.shape, generator=generator).to("cuda", mine.dtype)
            mine.grad.copy_(value)
            theirs.grad = value
        found_inf.fill_(skip)
        for optimizers in (captured, eager):
            optimizers.set_scale(scale)
        graph.replay()
        eager.step(found_inf)
        assert same(values(captured), values(eager)), seed


def test_fewer_bits_take_less_device_memory():
    held = []
    for flags in ({}, {"momentum_dtype": "int8", "weight_dtype": "bf16_residual"}):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        optimizers = on_gpu(**flags, shapes={"w": (2048, 4096)}, roles={"w": "hidden"})
        step(optimizers, 1)
        optimizers.zero_grad()
        held.append((torch.cuda.memory_allocated() - before) / (2048 * 4096))
        del optimizers
    assert held[0] == pytest.approx(8.0, rel=0.05)
    assert held[1] == pytest.approx(4.0, rel=0.05)


def test_the_products_in_triton_agree_with_torchs_in_the_direct_form():
    x = normalised(random_batch(2, 128, 128, device="cuda"), torch.float16)
    ours = direct_form(x, polynomials(5), triton_products()).polar_KMN
    theirs = direct_form(x, polynomials(5), TorchProducts()).polar_KMN
    assert relative(ours, theirs) < 0.02
