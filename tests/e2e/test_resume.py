"""A run that stops and starts again in the same folder."""

from collections.abc import Callable
from typing import Any

import pytest

from sigma.config.resolved import load_resolved
from sigma.core.errors import SigmaError
from sigma.core.stop import StopRequest
from sigma.train.feature import StepState
from sigma.train.loop import Trainer
from tests.e2e.tiny_trainer import LEAN, ON_GPU, Make, digest, rows, same, weights


@pytest.mark.parametrize(
    "flags",
    [
        {"optimizer": "muon"},
        {"optimizer": "adamw"},
        LEAN,
        {"optimizer": "soapmuon"},
        {"optimizer": "gnprox", "gn_interval": 2, "gn_damping_interval": 2},
        {"optimizer": "c3o", "c3o_credit_enabled": True, "c3o_probe_interval": 2, "c3o_audit_interval": 2},
    ],
    ids=lambda f: f["optimizer"],
)
def test_an_interrupted_run_ends_with_the_same_model_file(make: Make, flags: dict[str, Any]) -> None:
    whole = make("whole", **flags)
    whole.run()
    for stop_at in (2, 4, None):
        part = make("cut", StopRequest(), **flags)
        if stop_at is not None:
            part.features.run = stopping(part, stop_at)  # type: ignore[method-assign]
        part.run()
    assert digest(part, 6) == digest(whole, 6)
    seen = [row["tokens_seen_total"] for row in rows(part)]
    assert seen == [row["tokens_seen_total"] for row in rows(whole)]


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["muon", "normuon", "adamuon", "adamw"])
def test_an_interrupted_deterministic_run_on_cuda_ends_with_the_same_model_file(make: Make, optimizer: str) -> None:
    whole = make("whole", optimizer=optimizer, **ON_GPU)
    whole.run()
    for stop_at in (2, None):
        part = make("cut", StopRequest(), optimizer=optimizer, **ON_GPU)
        if stop_at is not None:
            part.features.run = stopping(part, stop_at)  # type: ignore[method-assign]
        part.run()
    assert digest(part, 6) == digest(whole, 6)


def stopping(trainer: Trainer, step: int) -> Callable[[str, StepState], None]:
    plain = trainer.features.run

    def run(hook: str, s: StepState) -> None:
        if s.step == step:
            trainer.stop.request()
        plain(hook, s)

    return run


def test_the_inventory_of_saved_state_is_this(make: Make) -> None:
    """tests/unit/train/test_loop.py shows for each that it matters (tests/unit/data/test_stream.py for the stream); a
    new kind of state belongs to both lists.
    """
    registry = make().saver.registry
    assert registry.group_names() == ["model", "optim", "stream"]
    assert registry.names() == ["progress", "data", "features", "stepper", "meter", "optimizers", "counters", "rng"]


def test_a_resume_with_another_routing_table_is_refused_and_changes_nothing(make: Make) -> None:
    make(steps=3).run()
    other = make(steps=6, muon_exclude_router=False)
    before = weights(other)
    with pytest.raises(SigmaError, match=r"another routing table: .* was \['adamw', 'router'\]"):
        other.run()
    assert same(weights(other), before)


def test_resume_off_starts_anew(make: Make) -> None:
    make().run()
    again = make(resume=False)
    assert again.run().state == "finished"
    assert [row["checkpoint_resume_step"] for row in rows(again, "startup")] == [None, None]
    assert load_resolved(again.run_dir / "resolved_args.txt").run.resume
