"""FeatureSet: what hooks return is counted, timed and named by the set."""

from typing import Any

import pytest
import torch

from sigma.train.feature import Feature, FeatureSet, StepState, Work


class Worker(Feature):
    name = "worker"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.memory = 0

    def on_batch(self, s: StepState) -> Work | None:
        self.seen.append("on_batch")
        return None

    def after_step(self, s: StepState) -> Work | None:
        self.seen.append("after_step")
        self.memory += 1
        return Work(3, torch.tensor(2), {"rank": torch.tensor(7.0)}) if s.step > 1 else None

    def close(self) -> None:
        self.seen.append("close")

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_state_dict(self, state: Any) -> None:
        self.memory = state["memory"]


class Late(Feature):
    name = "late"

    def first_due(self) -> int | None:
        return 5


def counters(features: FeatureSet, name: str = "worker") -> tuple[int, int]:
    row = features.columns()
    return row[f"feature_{name}_calls"], row[f"feature_{name}_effective_calls"]


def test_work_is_counted_and_nothing_else() -> None:
    features = FeatureSet([Worker()])
    for step in (1, 2, 3):
        features.run("on_batch", StepState(step, None))
        features.run("after_step", StepState(step, None))
    assert counters(features) == (6, 4)


def test_work_of_a_failed_attempt_does_not_count() -> None:
    class Weigher(Feature):
        name = "weigher"
        retries = 0

        def on_loss(self, s: StepState) -> Work:
            return Work(1, 1)

        def on_retry(self) -> None:
            self.retries += 1

    weigher = Weigher()
    features = FeatureSet([weigher])
    for _ in range(3):
        features.run("on_loss", StepState(1, None))
    features.retry()
    features.run("on_loss", StepState(1, None))
    features.run("after_step", StepState(1, None))
    assert counters(features, "weigher") == (1, 1)
    assert weigher.retries == 1


def test_metrics_carry_the_name_of_the_feature() -> None:
    s = StepState(2, None)
    FeatureSet([Worker()]).run("after_step", s)
    assert s.metrics == {"worker_rank": torch.tensor(7.0)}


def test_known_features_have_columns_when_they_are_off() -> None:
    row = FeatureSet([], known=["worker"]).columns()
    assert row == {f"feature_worker_{part}": 0 for part in ("enabled", "calls", "effective_calls", "s")}


def test_enabled_features_say_so() -> None:
    assert FeatureSet([Worker()], known=["other"]).columns()["feature_worker_enabled"] == 1


def test_idle_names_features_that_were_due_and_never_worked() -> None:
    features = FeatureSet([Worker(), Late()])
    assert features.idle(1) == ["worker"]
    assert features.idle(5) == ["worker", "late"]
    features.run("after_step", StepState(2, None))
    assert features.idle(5) == ["late"]


def test_counters_and_own_state_survive_a_resume() -> None:
    first = FeatureSet([Worker()])
    first.run("after_step", StepState(2, None))
    worker = Worker()
    second = FeatureSet([worker])
    second.load_state_dict(first.state_dict())
    second.run("after_step", StepState(3, None))
    assert counters(second) == (6, 4)
    assert worker.memory == 2


def test_a_feature_that_raises_stops_the_run() -> None:
    class Broken(Feature):
        name = "broken"

        def after_step(self, s: StepState) -> Work | None:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        FeatureSet([Broken()]).run("after_step", StepState(1, None))


def test_closing_goes_backwards() -> None:
    order: list[str] = []

    def make(label: str) -> Feature:
        feature = type(label, (Feature,), {"name": label, "close": lambda self: order.append(label)})
        return feature()

    FeatureSet([make("first"), make("second")]).close()
    assert order == ["second", "first"]


def test_time_is_taken_per_feature() -> None:
    features = FeatureSet([Worker()])
    features.run("after_step", StepState(1, None))
    assert features.columns()["feature_worker_s"] > 0
