"""Gauss-Newton curvature from labels drawn from the model (T6)."""

import pytest
import torch
from torch import Tensor, nn

from sigma.model.bitlinear import BitLinear
from sigma.model.moe import ExpertLinear
from sigma.optim.curvature import (
    backward_with_drawn_labels,
    diagonal_curvature,
    draw_labels,
    input_covariance,
    output_covariance,
    watch_products,
)
from sigma_kernels.experts.op import sort_by_expert

TOKENS, INPUTS, CLASSES = 40, 3, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_gauss_newton(x_TN: Tensor, weight_MN: Tensor) -> Tensor:
    """J^T (diag p - p p^T) J of the mean cross-entropy of softmax regression, by autodiff of the loss itself.

    For a linear model the Gauss-Newton matrix is the Hessian; it does not depend on the labels.
    """
    labels = torch.zeros(len(x_TN), dtype=torch.int64)

    def loss(flat: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x_TN @ flat.view_as(weight_MN).T, labels)

    return torch.func.hessian(loss)(weight_MN.flatten())


def sampled(x_TN: Tensor, weight_MN: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Mean over draws of A (x) B as the matrix over vec(W), and of N g g^T."""
    linear = nn.Linear(INPUTS, CLASSES, bias=False)
    linear.weight.data = weight_MN.clone()
    generator = torch.Generator().manual_seed(1)
    seen: list[tuple[Tensor, Tensor]] = []
    kron, outer = torch.zeros(12, 12), torch.zeros(12, 12)
    with watch_products(linear, [linear.weight], lambda w, x, d: seen.append((x, d))):
        for _ in range(draws):
            logits = linear(x_TN[None])
            labels = torch.zeros(1, TOKENS, dtype=torch.int64)
            count = backward_with_drawn_labels(logits, labels, generator)
            x, d = seen.pop()
            kron += torch.kron(output_covariance(d, count), input_covariance(x)) / draws
            grad = linear.weight.grad.flatten()
            outer += count * torch.outer(grad, grad) / draws
            linear.weight.grad = None
    return kron, outer


def test_drawn_labels_give_the_gauss_newton_matrix() -> None:
    """T6. Inputs of equal predictions make x and d independent, which is when the Kronecker form is exact."""
    x, weight = draw(TOKENS, INPUTS), torch.zeros(CLASSES, INPUTS)
    exact = exact_gauss_newton(x, weight)
    kron, outer = sampled(x, weight, 1600)
    assert float((kron - exact).norm() / exact.norm()) < 0.02
    # N g g^T has rank 1 in 9 dimensions that matter: an error of about sqrt(9 / 1600)
    assert float((outer - exact).norm() / exact.norm()) < 0.1


def test_the_diagonal_in_the_eigenbasis_is_that_of_the_exact_matrix() -> None:
    """Where x and d depend on each other the Kronecker form is off, and the measured diagonal is not."""
    x, weight = draw(TOKENS, INPUTS), 2 * draw(CLASSES, INPUTS, seed=5)
    exact = exact_gauss_newton(x, weight)
    left, right = torch.linalg.qr(draw(CLASSES, CLASSES, seed=2)).Q, torch.linalg.qr(draw(INPUTS, INPUTS, seed=3)).Q
    turn = torch.kron(left, right)
    wanted = (turn.T @ exact @ turn).diagonal().view(CLASSES, INPUTS)
    generator, found, a, b = torch.Generator().manual_seed(1), 0.0, 0.0, 0.0
    for _ in range(800):
        logits = (x @ weight.T).requires_grad_()
        count = backward_with_drawn_labels(logits[None], torch.zeros(1, TOKENS, dtype=torch.int64), generator)
        found = found + diagonal_curvature(x, logits.grad, right, left, count) / 800
        a, b = a + input_covariance(x) / 800, b + output_covariance(logits.grad, count) / 800
    kron = torch.outer((left.T @ b @ left).diagonal(), (right.T @ a @ right).diagonal())
    assert float((found - wanted).norm() / wanted.norm()) < 0.05
    assert float((kron - wanted).norm() / wanted.norm()) > 0.05


def test_the_loss_is_the_mean_over_the_labels_that_count() -> None:
    logits = draw(TOKENS, CLASSES).requires_grad_()
    labels = torch.zeros(TOKENS, dtype=torch.int64)
    labels[1:4] = -100
    assert backward_with_drawn_labels(logits[None], labels[None], None) == TOKENS - 3
    (want,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), logits)
    torch.testing.assert_close(logits.grad, want)


def test_labels_of_the_text_give_another_matrix() -> None:
    """The empirical Fisher matrix is not the Gauss-Newton matrix: the difference is the point of drawing labels."""
    x, weight = draw(TOKENS, INPUTS), torch.zeros(CLASSES, INPUTS)
    linear = nn.Linear(INPUTS, CLASSES, bias=False)
    linear.weight.data = weight
    seen: list[Tensor] = []
    with watch_products(
        linear, [linear.weight], lambda w, x, d: seen.append(output_covariance(d, torch.tensor(TOKENS)))
    ):
        labels = torch.zeros(TOKENS, dtype=torch.int64)
        nn.functional.cross_entropy(linear(x), labels).backward()
    exact = exact_gauss_newton(x, weight)
    assert float((torch.kron(seen[0], input_covariance(x)) - exact).norm() / exact.norm()) > 0.5


def test_drawn_labels_follow_the_prediction_and_spare_what_is_ignored() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).log_softmax(-1).expand(6000, 3)
    labels = torch.zeros(6000, dtype=torch.int64)
    labels[:1000] = -100
    drawn = draw_labels(logits, labels, torch.Generator().manual_seed(0))
    assert (drawn[:1000] == -100).all()
    share = torch.bincount(drawn[1000:]) / 5000
    assert torch.allclose(share, logits[0].exp(), atol=0.02)


def test_input_and_gradient_of_a_product_multiply_to_the_weight_gradient() -> None:
    linear = BitLinear(5, 3, quant_mode="none")
    seen: list[Tensor] = []
    with watch_products(linear, [linear.weight], lambda w, x, d: seen.append(d.T @ x)):
        linear(draw(2, 4, 5)).square().mean().backward()
    assert torch.allclose(seen[0], linear.weight.grad, atol=1e-6)
    linear(draw(2, 4, 5)).sum().backward()
    assert len(seen) == 1, "nothing is watched once the block is left"


@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
def test_rows_of_a_stack_multiply_to_the_gradient_of_their_experts(gate: bool) -> None:
    stack = ExpertLinear(3, 5, 4, quant_mode="none")
    rows = sort_by_expert(torch.tensor([[0], [2], [2], [0], [1]]), 3)
    gate_M = torch.rand(5, generator=torch.Generator().manual_seed(1)) if gate else None
    sums = torch.zeros(3, 4, 5)

    def sink(weight: Tensor, x: Tensor, d: Tensor) -> None:
        for row, expert in enumerate(rows.expert_M.tolist()):
            sums[expert] += torch.outer(d[row], x[row])

    with watch_products(stack, [stack.weight], sink):
        stack(draw(5, 5), rows, gather=False, gate_M=gate_M).square().sum().backward()
    assert torch.allclose(sums, stack.weight.grad, atol=1e-5)
