"""The b1.58 quantisers and the ternary product: figures of the paper, exactness, gradients."""

from __future__ import annotations

import pytest
import torch

from sigma_kernels import counters
from sigma_kernels.bitlinear.op import bit_linear, compute_dtype, linear, quantize_activation, quantize_weight
from sigma_kernels.bitlinear.reference import bit_linear_reference


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return bit_linear(x, w, *quantize_weight(w.detach()))


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def test_gaussian_weight_has_the_known_zeros_error_and_cosine():
    w = gaussian(512, 768)
    codes, scale = quantize_weight(w)
    used = codes * scale
    assert set(codes.unique().tolist()) == {-1, 0, 1}
    assert (codes == 0).float().mean().item() == pytest.approx(0.310, abs=0.005)
    assert relative(used, w) == pytest.approx(0.513, abs=0.003)
    assert torch.cosine_similarity(used.flatten(), w.flatten(), dim=0).item() == pytest.approx(0.887, abs=0.003)
    # what the initial weights count on: E[(scale * code)^2] = 0.4393 for N(0, 1)
    assert (used.norm() / w.norm()).item() == pytest.approx(0.4393**0.5, abs=0.003)


@pytest.mark.parametrize("kind, error", [("gaussian", 0.0077), ("laplace", 0.012), ("relu2", 0.013)])
def test_int8_rows_have_the_known_error(kind, error):
    x = gaussian(400, 768)
    if kind == "laplace":
        x = x.sign() * -torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).clamp(min=1e-9).log()
    elif kind == "relu2":
        x = x.relu().square()
    codes, scale = quantize_activation(x)
    assert relative(codes * scale[:, None], x) == pytest.approx(error, rel=0.1)


def test_ties_round_to_even_in_both_quantisers():
    w = torch.tensor([[0.5, 1.5, -0.5, -1.5, 1.0, -1.0, 1.0, 1.0]])  # mean magnitude exactly 1
    codes, scale = quantize_weight(w)
    assert scale.item() == 1
    assert codes.tolist() == [[0, 1, 0, -1, 1, -1, 1, 1]]  # 0.5 -> 0, 1.5 -> 2 -> 1
    codes, scale = quantize_activation(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]]))
    assert scale.item() == 1
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_a_stack_has_one_scale_for_each_expert_and_equals_its_matrices():
    w = gaussian(3, 5, 7) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    codes, scale = quantize_weight(w)
    assert scale.shape == (3,)
    for e in range(3):
        one_codes, one_scale = quantize_weight(w[e])
        assert torch.equal(codes[e], one_codes)
        assert torch.equal(scale[e], one_scale)


def test_zero_tensors_quantise_to_zero_and_small_ones_use_the_floor():
    codes, scale = quantize_weight(torch.zeros(2, 3))
    assert codes.abs().sum() == 0
    assert scale.item() == pytest.approx(1e-5)
    codes, scale = quantize_activation(torch.tensor([[0.0, 0.0], [1e-6, 0.0]]))
    assert codes.tolist() == [[0, 0], [13, 0]]  # 1e-6 * 127 / 1e-5 = 12.7
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_visible_and_alone(bad):
    x = gaussian(3, 8)
    x[1, 2] = bad
    y = product(x, gaussian(4, 8, seed=1))
    assert torch.isfinite(y).all(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("k", [7, 768, 16384])
def test_fp32_product_of_codes_equals_the_integer_product(k):
    codes_x, scale_x = quantize_activation(gaussian(5, k))
    codes_w, scale_w = quantize_weight(torch.ones(3, k))  # all ones: the largest sums that there are
    codes_x[0] = 127
    exact = codes_x.long() @ codes_w.long().T
    assert exact[0, 0] == 127 * k
    assert torch.equal((codes_x.float() @ codes_w.float().T).long(), exact)
    # and the op itself, whose only rounding is the product with the scale
    x, w = gaussian(5, k), gaussian(3, k, seed=2)
    codes_x, scale_x = quantize_activation(x)
    codes_w, scale_w = quantize_weight(w)
    exact = (codes_x.long() @ codes_w.long().T).float()
    assert torch.equal(bit_linear(x, w, codes_w, scale_w), exact * (scale_x * scale_w)[:, None])


def test_values_and_gradients_equal_the_straight_through_reference_in_fp64():
    x, w, g = (
        gaussian(2, 5, 7, dtype=torch.float64),
        gaussian(3, 7, seed=1, dtype=torch.float64),
        gaussian(2, 5, 3, seed=2),
    )
    results = []
    for fn in (product, bit_linear_reference):
        x_, w_ = x.clone().requires_grad_(), w.clone().requires_grad_()
        y = fn(x_, w_)
        y.backward(g.double())
        results.append((y.detach(), x_.grad, w_.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_two_formulas():
    x, w, g = gaussian(5, 7).requires_grad_(), gaussian(3, 7, seed=1).requires_grad_(), gaussian(5, 3, seed=2)
    (codes_w, scale_w), (codes_x, scale_x) = quantize_weight(w.detach()), quantize_activation(x.detach())
    product(x, w).backward(g)
    torch.testing.assert_close(x.grad, g @ (scale_w * codes_w))
    torch.testing.assert_close(w.grad, g.T @ (codes_x * scale_x[:, None]))


def test_x_is_saved_once_for_all_its_products_and_codes_of_x_are_not():
    x = gaussian(6, 8).requires_grad_()
    saved = []
    weights = [gaussian(4, 8, seed=s) for s in (1, 2, 3)]
    quantised = [quantize_weight(w) for w in weights]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        outputs = [bit_linear(x, w, *q) for w, q in zip(weights, quantised, strict=True)]
    assert len(outputs) == 3
    known = {x.data_ptr()} | {t.data_ptr() for q in quantised for t in q}
    assert {t.data_ptr() for t in saved} == known


def test_bf16_autocast_rounds_the_exact_result_once():
    x, w = gaussian(9, 64), gaussian(5, 64, seed=1)
    want = product(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        got = product(x, w)
        assert compute_dtype(x.double()) == torch.float64
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want.to(torch.bfloat16))


def test_plain_linear_takes_no_rows():
    x, w = torch.zeros(2, 0, 8, requires_grad=True), torch.ones(3, 8, requires_grad=True)
    y = linear(x, w)
    assert y.shape == (2, 0, 3)
    y.sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    assert (x.grad.shape, w.grad.abs().sum()) == (x.shape, 0)


def test_plain_linear_equals_torch_and_saves_its_input_as_given_under_autocast():
    x, w, g = gaussian(2, 5, 7).requires_grad_(), gaussian(3, 7, seed=1).requires_grad_(), gaussian(2, 5, 3, seed=2)
    want = torch.autograd.grad(torch.nn.functional.linear(x, w), (x, w), g)
    for got, expected in zip(torch.autograd.grad(linear(x, w), (x, w), g), want, strict=True):
        torch.testing.assert_close(got, expected)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w).dtype == torch.bfloat16
        assert linear(x, w, dtype=torch.float32).dtype == torch.float32
    assert {t.data_ptr() for t in saved} == {x.data_ptr(), w.data_ptr()}


def test_no_gradient_is_computed_that_nobody_wants():
    x, w = gaussian(4, 7), gaussian(3, 7, seed=1).requires_grad_()
    y = product(x, w)
    y.sum().backward()
    assert x.grad is None
    assert (counters.get("bitlinear.forward"), counters.get("bitlinear.backward")) == (1, 1)


def test_shapes_that_do_not_fit_are_refused():
    w = gaussian(3, 7)
    with pytest.raises(ValueError, match="do not fit"):
        bit_linear(gaussian(4, 6), w, *quantize_weight(w))
    with pytest.raises(ValueError, match="matrix"):
        quantize_weight(gaussian(7))


@pytest.mark.gpu
@pytest.mark.parametrize("m, n, k", [(33, 24, 40), (1024, 768, 16384)], ids=["odd", "deep"])
def test_cuda_bf16_equals_the_cpu_bit_for_bit_and_its_gradients_within_bf16(m, n, k):
    x, w, g = gaussian(m, k), gaussian(n, k, seed=1), gaussian(m, n, seed=2)
    want_x, want_w = x.clone().requires_grad_(), w.clone().requires_grad_()
    want = product(want_x, want_w)
    want.backward(g)
    got_x, got_w = x.cuda().requires_grad_(), w.cuda().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        got = bit_linear(got_x, got_w, *(t.cuda() for t in quantize_weight(w)))
    got.backward(g.cuda().bfloat16())
    codes, scale = quantize_activation(x)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(quantize_activation(x.cuda()), (codes, scale), strict=True))
    assert torch.equal(got.cpu(), want.to(torch.bfloat16))
    assert relative(got_x.grad.cpu(), want_x.grad) < 4e-3
    assert relative(got_w.grad.cpu(), want_w.grad) < 4e-3
