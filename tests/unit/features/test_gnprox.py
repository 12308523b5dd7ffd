"""The plug of GNProx: it measures curvature with labels drawn from the model, and leaves no trace in the training."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.core.errors import SigmaError
from sigma.features.gnprox import GNProxCurvature
from sigma.optim.build import OptimizerSet, build_optimizers
from sigma.optim.gnprox import GNProx
from sigma.train.feature import Context, StepState

VOCABULARY, WIDTH = 11, 6


class Model(nn.Module):
    """Embedding, two hidden layers, tied head."""

    def __init__(self, linear: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Parameter(torch.randn(VOCABULARY, WIDTH))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.linear = linear

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed[ids]
        for layer in self.layers:
            x = x + torch.tanh(layer(x) if self.linear else x @ layer.weight.T)
        return x @ self.embed.T


def batch(seed: int) -> Any:
    ids = torch.randint(VOCABULARY, (8, 17), generator=torch.Generator().manual_seed(seed))
    ids[:, 1:] = (2 * ids[:, :-1] + 1) % VOCABULARY
    return SimpleNamespace(input_ids_BT=ids[:, :-1], labels_BT=ids[:, 1:])


def loss_of(model: Model, b: Any, rows: slice) -> Tensor:
    return F.cross_entropy(model(b.input_ids_BT[rows]).flatten(0, 1), b.labels_BT[rows].flatten())


def make(linear: bool = True, lr: float = 1e-2, drawn: bool = True, **flags: Any) -> tuple[Model, OptimizerSet, Any]:
    model = Model(linear)
    roles = {name: "hidden" if "layers" in name else "embedding" for name, _ in model.named_parameters()}
    train = TrainSection(optimizer="gnprox", lr=lr, adam_lr=1e-2, weight_decay=0.0)
    curvature = CurvatureSection(gn_damping_interval=2, **flags)
    optimizers = build_optimizers(dict(model.named_parameters()), roles, train, OptimSection(), curvature, C3OSection())
    assert optimizers.matrix is not None
    direction = optimizers.matrix.direction
    assert isinstance(direction, GNProx)
    settings: dict[str, Any] = {"interval": 3, "rows": 4, "reduction_rows": 8, "seed": 0, "drawn": drawn}
    feature = GNProxCurvature(optimizers.matrix, direction, **settings)
    logits = lambda b, rows: model(b.input_ids_BT[rows])  # noqa: E731
    feature.setup(Context(model, lambda b, rows: loss_of(model, b, rows), nullcontext, logits))
    return model, optimizers, feature


def step(model: Model, optimizers: OptimizerSet, feature: Any, number: int) -> Any:
    s = StepState(number, batch(number))
    work = feature.on_batch(s)
    loss_of(model, s.batch, slice(None)).backward()
    optimizers.step(torch.tensor(0.0))
    optimizers.zero_grad()
    feature.after_step(s)
    return work


def test_curvature_is_measured_in_the_first_step_and_at_every_interval() -> None:
    model, optimizers, feature = make()
    works = [step(model, optimizers, feature, number) for number in range(1, 8)]
    assert [work is not None for work in works] == [True, False, True, False, False, True, False]
    assert all(int(work.effective) == 1 for work in works if work is not None)
    tensors = optimizers.tensors()
    assert (tensors["layers.0.weight|gn_diagonal"] >= 0).all()
    assert tensors["layers.0.weight|gn_diagonal"].std() > 0


def test_a_measurement_leaves_no_gradient_and_no_weight_changed() -> None:
    model, _, feature = make()
    before = [p.detach().clone() for p in model.parameters()]
    feature.on_batch(StepState(1, batch(1)))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_measurement_that_is_not_finite_is_dropped_and_not_counted_as_effective() -> None:
    model, optimizers, feature = make()
    step(model, optimizers, feature, 1)
    before = {key: t.clone() for key, t in optimizers.tensors().items() if "gn_" in key}
    model.embed.data[:] = torch.nan
    work = feature.on_batch(StepState(3, batch(3)))
    assert int(work.effective) == 0
    assert all(torch.equal(optimizers.tensors()[key], value) for key, value in before.items())


def test_labels_of_the_text_give_other_statistics() -> None:
    found = []
    for drawn in (True, False):
        _, optimizers, feature = make(drawn=drawn)
        feature.on_batch(StepState(1, batch(1)))
        found.append(optimizers.tensors()["layers.1.weight|gn_outputs"])
    assert not torch.allclose(found[0], found[1], rtol=0.1)


def test_a_matrix_that_is_no_modules_weight_is_an_error_that_says_what_to_do() -> None:
    _, _, feature = make(linear=False)
    with pytest.raises(SigmaError, match=r"saw no product with 2 of its matrices.*--optimizer soapmuon"):
        feature.on_batch(StepState(1, batch(1)))


def test_the_reduction_is_that_of_the_hidden_matrices_and_puts_every_weight_back() -> None:
    """Short steps keep what the slope promises: the ratio is near 1, although AdamW has moved the embedding too."""
    model, optimizers, feature = make(lr=1e-3)
    step(model, optimizers, feature, 1)
    s = StepState(2, batch(2))
    feature.on_batch(s)
    loss_of(model, s.batch, slice(None)).backward()
    optimizers.step(torch.tensor(0.0))
    moved = [p.detach().clone() for p in model.parameters()]
    feature.after_step(s)
    assert all(torch.equal(p, new) for p, new in zip(model.parameters(), moved, strict=True))
    assert float(feature.direction.damping.ratio) == pytest.approx(1, abs=0.1)
    assert float(feature.direction.damping.value) < 0.1


def test_the_damping_survives_a_checkpoint() -> None:
    model, optimizers, feature = make(lr=1e-3)
    for number in (1, 2):
        step(model, optimizers, feature, number)
    state = feature.state_dict()
    _, _, other = make(lr=1e-3)
    other.load_state_dict(state)
    assert other.state_dict() == state != make()[2].state_dict()
