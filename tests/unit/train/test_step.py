"""One optimizer step: the same gradient however the batch is cut, nothing left behind by a failed attempt."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.optim import OptimSection
from sigma.config.train import TrainSection
from sigma.core.errors import SigmaError
from sigma.optim.build import build_optimizers
from sigma.train.clock import HostTimeline, PhaseClock
from sigma.train.feature import StepState
from sigma.train.step import Stepper, StepSettings
from sigma_kernels import counters
from sigma_kernels.matrix_step.blocks import BlockList
from tests.unit.optim.fake_graph import graph, write_table

CPU = torch.device("cpu")
SETTINGS = StepSettings(device=CPU, bf16=False, micro_batch=6, grad_clip=1.0)
TRAIN = TrainSection(steps=10, lr=1e-2, adam_lr=1e-2)


@pytest.fixture
def make(tiny: Any) -> Callable[..., Stepper]:
    def build(optimizer: str = "muon", **changes: Any) -> Stepper:
        model = tiny.Model()
        events: list[tuple[str, dict[str, Any]]] = []
        retries: list[int] = []
        optimizers = build_optimizers(
            dict(model.named_parameters()), model.parameter_roles(), replace(TRAIN, optimizer=optimizer),
            OptimSection(), CurvatureSection(), C3OSection(),
        )  # fmt: skip
        stepper = Stepper(
            model,
            optimizers,
            replace(SETTINGS, **changes),
            PhaseClock(HostTimeline()),
            on_loss=lambda s: None,
            on_retry=lambda: retries.append(1),
            on_event=lambda event, **details: events.append((event, details)),
        )
        stepper.events, stepper.retries = events, retries  # pyright: ignore[reportAttributeAccessIssue]
        return stepper

    return build


def snapshot(stepper: Stepper) -> dict[str, torch.Tensor]:
    state = {**stepper.model.state_dict(), **stepper.optimizers.tensors()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def gradients(stepper: Stepper, batch: Any) -> dict[str, torch.Tensor]:
    """Gradients of one step, taken before the update drops them."""
    found: dict[str, torch.Tensor] = {}

    def keep(found_inf: torch.Tensor, clip: Any) -> None:
        found.update({name: p.grad.clone() for name, p in stepper.model.named_parameters() if p.grad is not None})

    stepper.optimizers.step = keep  # type: ignore[method-assign]
    stepper.train(StepState(1, batch), 1.0)
    return found


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5])
def test_cutting_the_batch_does_not_change_the_gradient(make: Any, tiny: Any, micro_batch: int) -> None:
    batch = tiny.batch(ragged=True)
    whole = gradients(make(grad_clip=0), batch)
    cut = gradients(make(grad_clip=0, micro_batch=micro_batch), batch)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_all_labels(make: Any, tiny: Any) -> None:
    batch = tiny.batch(ragged=True)
    whole, cut = make(), make(micro_batch=2)
    loss = whole.train(StepState(1, batch), 1.0).loss
    torch.testing.assert_close(cut.train(StepState(1, batch), 1.0).loss, loss, rtol=1e-6, atol=0)


def test_a_micro_batch_of_padding_only_is_left_out(make: Any, tiny: Any) -> None:
    batch = tiny.batch()
    batch.labels_BT[2:4] = -100
    stepper = make(micro_batch=2)
    result = stepper.train(StepState(1, batch), 1.0)
    assert torch.isfinite(result.loss)
    assert stepper.model.rows == [2, 2]


def test_a_batch_without_labels_is_refused(make: Any, tiny: Any) -> None:
    batch = tiny.batch()
    batch.labels_BT[:] = -100
    with pytest.raises(ValueError, match="without labels"):
        make().train(StepState(1, batch), 1.0)


def test_the_router_loss_trains_too(make: Any, tiny: Any) -> None:
    plain, weighted = make(grad_clip=0), make(grad_clip=0)
    weighted.model.aux_weight = 0.3
    batch = tiny.batch()
    difference = gradients(weighted, batch)["hidden"] - gradients(plain, batch)["hidden"]
    hidden = plain.model.hidden.detach()
    torch.testing.assert_close(difference, 0.3 * 2 * hidden / hidden.numel(), rtol=1e-3, atol=1e-6)


def test_on_loss_can_change_what_is_trained(make: Any, tiny: Any) -> None:
    stepper = make(grad_clip=0)

    def double(s: StepState) -> None:
        s.loss = s.loss * 2

    batch = tiny.batch()
    plain = gradients(make(grad_clip=0), batch)
    stepper._on_loss = double
    torch.testing.assert_close(gradients(stepper, batch)["embed"], 2 * plain["embed"])


def test_clipping_bounds_the_norm_and_reports_the_norm_before(make: Any, tiny: Any) -> None:
    batch = tiny.batch()
    free = gradients(make(grad_clip=0), batch)
    norm = torch.stack([g.norm() for g in free.values()]).norm()
    stepper = make(grad_clip=0.01)
    clipped = gradients(stepper, batch)
    assert torch.stack([g.norm() for g in clipped.values()]).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert make(grad_clip=0.01).train(StepState(1, batch), 1.0).grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_non_finite_gradient_leaves_weights_state_and_buffers(make: Any, tiny: Any, optimizer: str) -> None:
    stepper = make(optimizer)
    stepper.train(StepState(1, tiny.batch(1)), 1.0)
    before = snapshot(stepper)
    stepper.model.poison = True
    result = stepper.train(StepState(2, tiny.batch(2)), 1.0)
    assert result.found_inf.item() == 1
    assert same(snapshot(stepper), before)
    stepper.model.poison = False
    stepper.train(StepState(3, tiny.batch(3)), 1.0)
    assert not same(snapshot(stepper), before)


def test_skips_are_counted_in_total_and_in_a_row(make: Any, tiny: Any) -> None:
    stepper = make()
    for step, poison in enumerate([True, True, False, True], start=1):
        stepper.model.poison = poison
        stepper.train(StepState(step, tiny.batch(step)), 1.0)
    assert stepper.state_dict() == {"micro_batch": 6, "skipped_total": 3, "skipped_in_row": 1}
    assert stepper.longest_skip.item() == 2


def test_out_of_memory_halves_the_micro_batch_and_trains_the_same_batch(make: Any, tiny: Any) -> None:
    stepper, reference = make(), make(micro_batch=1)
    stepper.model.fail_above = 2
    batch = tiny.batch()
    stepper.train(StepState(1, batch), 1.0)
    assert stepper.model.rows == [6, 3] + [1] * 6
    assert stepper.micro_batch == 1
    assert stepper.events == [
        ("micro_batch_halved", {"step": 1, "before": 6, "after": 3}),
        ("micro_batch_halved", {"step": 1, "before": 3, "after": 1}),
    ]
    assert stepper.retries == [1, 1]
    reference.train(StepState(1, batch), 1.0)
    assert same(snapshot(stepper), snapshot(reference))


@pytest.mark.parametrize("first", [6, 1], ids=["halves later", "not even a row"])
def test_out_of_memory_lets_the_optimizers_graphs_go_before_it_halves(
    make: Any, tiny: Any, monkeypatch: Any, first: int
) -> None:
    """A graph keeps memory that the same batch would have fitted into without it."""
    monkeypatch.setattr(BlockList, "table", write_table)
    stepper, reference = make(micro_batch=first), make(micro_batch=first)
    _, graphs, told = graph(stepper.optimizers)
    for step in (1, 2, 3):
        stepper.train(StepState(step, tiny.batch(step)), 1.0)
    assert graphs.replays == 2
    release = stepper.optimizers.release_graphs

    def release_and_fit() -> bool:
        stepper.model.fail_above = None
        return release()

    stepper.model.fail_above = 0
    stepper.optimizers.release_graphs = release_and_fit
    stepper.train(StepState(4, tiny.batch(4)), 1.0)
    assert (stepper.micro_batch, stepper.events, stepper.retries) == (first, [], [1])
    assert told == ["optim_graph_unused: memory ran out"]
    for step in (1, 2, 3, 4):
        reference.train(StepState(step, tiny.batch(step)), 1.0)
    assert same(snapshot(stepper), snapshot(reference))


def test_a_failed_attempt_counts_nothing(make: Any, tiny: Any) -> None:
    stepper = make()
    stepper.model.fail_above = 3
    plain = stepper._forward

    def counting(**kwargs: Any) -> Any:
        counters.add("test.forward")
        return plain(**kwargs)

    stepper._forward = counting
    before = counters.get("test.forward")
    stepper.train(StepState(1, tiny.batch()), 1.0)
    assert counters.get("test.forward") - before == 2


def test_memory_for_not_even_one_row_says_what_to_do(make: Any, tiny: Any) -> None:
    stepper = make()
    stepper.model.fail_above = 0
    with pytest.raises(SigmaError, match="lower --seq-len"):
        stepper.train(StepState(1, tiny.batch()), 1.0)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=repr)
def test_host_memory_counts_as_out_of_memory(make: Any, tiny: Any, error: Exception) -> None:
    stepper = make()
    plain, failures = stepper._forward, [error]

    def fail_once(**kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return plain(**kwargs)

    stepper._forward = fail_once
    stepper.train(StepState(1, tiny.batch()), 1.0)
    assert stepper.micro_batch == 3


def test_other_errors_are_not_taken_for_missing_memory(make: Any, tiny: Any) -> None:
    stepper = make()
    stepper._forward = lambda **kwargs: (_ for _ in ()).throw(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        stepper.train(StepState(1, tiny.batch()), 1.0)


def test_the_micro_batch_of_the_checkpoint_is_kept(make: Any) -> None:
    stepper = make()
    stepper.load_state_dict({"micro_batch": 3, "skipped_total": 5, "skipped_in_row": 2})
    assert stepper.state_dict() == {"micro_batch": 3, "skipped_total": 5, "skipped_in_row": 2}


def test_skips_before_a_resume_stop_it_only_if_they_go_on(make: Any, tiny: Any) -> None:
    """Else nobody could resume with the lower learning rate that the error asks for."""
    for poison, longest in ((False, 0), (True, 10)):
        stepper = make()
        stepper.load_state_dict({"micro_batch": 6, "skipped_total": 9, "skipped_in_row": 9})
        stepper.model.poison = poison
        stepper.train(StepState(1, tiny.batch()), 1.0)
        assert stepper.longest_skip.item() == longest


def test_bf16_changes_the_arithmetic_and_not_the_weights_dtype(make: Any, tiny: Any) -> None:
    batch = tiny.batch()
    exact, rounded = make(), make(bf16=True)
    losses = [stepper.train(StepState(1, batch), 1.0).loss for stepper in (exact, rounded)]
    assert losses[0] != losses[1]
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}


def test_the_scale_is_the_learning_rate(make: Any, tiny: Any) -> None:
    stepper = make("adamw")
    before = snapshot(stepper)["norm"]
    stepper.train(StepState(1, tiny.batch()), 0.5)
    moved = (snapshot(stepper)["norm"] - before).abs().max().item()
    assert moved == pytest.approx(0.5 * TRAIN.adam_lr, rel=1e-3)


def test_probes_leave_no_trace(make: Any, tiny: Any) -> None:
    stepper = make()
    context = stepper.context()
    before, drawn = snapshot(stepper), torch.get_rng_state()
    with context.undone():
        torch.rand(3)
        loss = context.loss(tiny.batch(), slice(0, 1))
    assert loss.requires_grad
    assert same(snapshot(stepper), before)
    assert torch.equal(torch.get_rng_state(), drawn)
