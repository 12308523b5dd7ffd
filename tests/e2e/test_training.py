"""What one step of the real trainer does and must not do: batches, memory, non-finite gradients, the weights' cache."""

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from sigma.train.feature import StepState
from sigma.train.loop import DivergedError
from sigma.train.rollback import Rollback
from tests.e2e.tiny_trainer import ON_GPU, Make, digest, rows, same, train_steps, weights


def test_the_loss_falls(make: Make) -> None:
    losses = train_steps(make(lr=1e-2, adam_lr=1e-2, batch_size=8, micro_batch_size=8), 40)
    assert sum(losses[-5:]) / 5 < sum(losses[:2]) / 2 - 1.0


def test_the_same_seed_gives_the_same_weights(make: Make) -> None:
    first, second = make("first"), make("second")
    train_steps(first, 2), train_steps(second, 2)
    assert same(weights(first), weights(second))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_moves_and_has_one_owner(make: Make, optimizer: str) -> None:
    trainer = make(optimizer=optimizer, batch_size=16, micro_batch_size=16, seq_len=64)
    before = weights(trainer)
    train_steps(trainer, 3)
    parameters = dict(trainer.model.named_parameters())
    assert [name for name, p in parameters.items() if torch.equal(p, before[name])] == []
    owners = [r.name for r in trainer.stepper.optimizers.routes]
    assert sorted(owners) == sorted(parameters)


def test_cutting_the_batch_does_not_change_the_gradient(make: Make) -> None:
    """Unquantised and without the bottleneck loss, whose entropy of a mean is not a mean over micro-batches."""
    found = []
    for micro_batch in (4, 2, 1):
        trainer = make(f"m{micro_batch}", micro_batch_size=micro_batch, quant_mode="none", rib_router_enabled=False)
        s = StepState(1, trainer.data.next_batch())
        trainer.stepper._accumulate(s)
        found.append({name: p.grad for name, p in trainer.model.named_parameters()})
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("device", [{}, pytest.param(ON_GPU, marks=pytest.mark.gpu)], ids=["cpu", "cuda"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_non_finite_gradient_leaves_no_trace(make: Make, optimizer: str, device: dict[str, Any]) -> None:
    trainer = make(optimizer=optimizer, **device)
    train_steps(trainer, 2)
    model, state = weights(trainer), {k: v.clone() for k, v in trainer.stepper.optimizers.tensors().items()}
    handle = trainer.model.get_parameter("model.norm.weight").register_hook(lambda g: g * torch.nan)
    train_steps(trainer, 1)
    handle.remove()
    assert same(weights(trainer), model)
    assert same(trainer.stepper.optimizers.tensors(), state)
    assert trainer.stepper.state_dict()["skipped_total"] == 1
    train_steps(trainer, 1)
    assert not same(weights(trainer), model)


def test_max_skipped_steps_is_the_limit(make: Make) -> None:
    trainer = make(max_skipped_steps=2)
    trainer.model.get_parameter("model.norm.weight").register_hook(lambda g: g * torch.nan)
    with pytest.raises(DivergedError, match="2 updates in a row"):
        trainer.run()


def test_out_of_memory_trains_the_same_batch_in_smaller_parts(make: Make) -> None:
    hungry, modest = make("hungry", micro_batch_size=4), make("modest", micro_batch_size=2)
    plain = hungry.stepper._forward

    def forward(**kwargs: Any) -> Any:
        result = plain(**kwargs)
        if kwargs["input_ids"].size(0) > 2:
            raise torch.OutOfMemoryError("injected")
        return result

    hungry.stepper._forward = forward
    assert hungry.run().state == modest.run().state == "finished"
    assert digest(hungry, 6) == digest(modest, 6)
    (event,) = rows(hungry, "event")
    assert (event["event"], event["before"], event["after"]) == ("micro_batch_halved", 4, 2)
    counted = [name for name in rows(modest)[-1] if name.endswith("_calls")]
    assert [rows(hungry)[-1][name] for name in counted] == [rows(modest)[-1][name] for name in counted]


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_an_attempt_that_ran_out_of_memory_keeps_no_activation(make: Make, place: str) -> None:
    trainer = make(micro_batch_size=4)
    first, last = trainer.model.model.layers[0], trainer.model.model.layers[-1]
    held: list[StorageWeakRef] = []
    failed: list[str] = []

    def fail_once(where: str) -> None:
        if where == place and not failed:
            failed.append(where)
            raise torch.OutOfMemoryError("injected")

    def watch(_module: Any, inputs: Any) -> None:
        held.append(StorageWeakRef(inputs[0].untyped_storage()))
        assert len(failed) == 0 or held[0].expired(), "the failed attempt still holds its activations"

    first.register_forward_pre_hook(watch)
    last.register_forward_hook(lambda *_: fail_once("forward"))
    trainer.stepper._on_loss = lambda s: s.loss.register_hook(lambda _: fail_once("backward"))
    train_steps(trainer, 1)
    assert (failed, trainer.stepper.micro_batch) == ([place], 2)


def test_the_training_forward_follows_the_weights(make: Make) -> None:
    """After some updates it computes what a model made anew from the weights computes: no stale ternary cache."""
    trained, initial, anew = make("trained"), make("initial"), make("anew")
    s = StepState(1, initial.data.next_batch())
    train_steps(trained, 3)
    anew.model.load_state_dict(trained.model.state_dict())
    losses = [trainer.stepper._accumulate(s)[0] for trainer in (trained, anew, initial)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["muon", "normuon", "adamuon", "adamw"])
def test_the_update_on_cuda_never_waits_for_the_device(make: Make, optimizer: str) -> None:
    trainer = make(optimizer=optimizer, device="cuda")
    train_steps(trainer, 2)
    s = StepState(3, trainer.data.next_batch())
    rollback = Rollback(trainer.stepper._buffers, torch.device("cuda"))
    loss, aux, labels = trainer.stepper._accumulate(s)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = trainer.stepper._update(loss, aux, labels, 1.0, rollback)
        trainer.meter.add(result, s.batch.text_bytes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(result.found_inf) == 0
