"""The loop around a tiny model: order of things, resume, stop, divergence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sigma.config.data import DataSection
from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma.config.train import TrainSection
from sigma.core.lock import RunLock
from sigma.core.stop import StopRequest
from sigma.core.strict_json import load_file, loads
from sigma.data.stream import StopWaitingError
from sigma.optim.build import build_optimizers
from sigma.train.checkpoint import CheckpointStore
from sigma.train.clock import CORE_PHASES, PHASES, make_clock
from sigma.train.feature import Feature, FeatureSet, StepState, Work
from sigma.train.kernel_stamp import KernelStamp
from sigma.train.loop import DivergedError, Trainer
from sigma.train.metrics import IntervalMeter, MetricsLog, SpeedMeter
from sigma.train.progress import Progress
from sigma.train.saver import Saver
from sigma.train.state import StateRegistry, read_rng, write_rng
from sigma.train.step import Stepper, StepSettings

CPU = torch.device("cpu")


class Judge:
    """In place of the evaluator: remembers when it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.final_step: int | None = None
        self.stopped = False

    def evaluate(self) -> dict[str, Any]:
        self.asked += 1
        return {"val_bpb": 2.0 + self.asked, "val_bytes": 1}

    def final(self, step: int, tokens: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        if self.stopped:
            return None
        self.final_step = step
        return {"val_bpb": 1.0, "val_bytes": 1, "final": True, "gzip_bpb": 2.0, "xz_bpb": 2.0, "witten_bell_bpb": 2.0}

    def is_final(self, step: int) -> bool:
        return self.final_step == step

    def forget_final(self) -> None:
        self.final_step = None


class Writer:
    def write(self, step: int) -> dict[str, Any]:
        return {"file": f"{step}.txt", "prompts": ["a"], "texts": ["b"]}


class Counting(Feature):
    name = "counting"

    def after_step(self, s: StepState) -> Work:
        return Work(2, torch.tensor(1))


@pytest.fixture
def make(tiny: Any, tmp_path: Path) -> Callable[..., Trainer]:
    def build(folder: str = "run", judge: Judge | None = None, **options: Any) -> Trainer:
        run_dir = tmp_path / folder
        run = RunSection(
            **{"device": "cpu", "output_dir": run_dir, "log_interval": 2, "save_interval": 4}
            | {name: options.pop(name) for name in list(options) if hasattr(RunSection, name)}
        )
        train = TrainSection(**{"steps": 10, "lr": 1e-2, "adam_lr": 1e-2, "precision": "fp32"} | options)
        config = RunConfig(run=run, train=train, data=DataSection(batch_size=6, micro_batch_size=6, seq_len=5))
        return assemble(tiny, config, judge or Judge())

    return build


def assemble(tiny: Any, config: RunConfig, judge: Judge) -> Trainer:
    run_dir, model, data = config.run.output_dir, tiny.Model(), tiny.Stream()
    lock = RunLock(run_dir).acquire()
    parameters, roles = dict(model.named_parameters()), model.parameter_roles()
    optimizers = build_optimizers(parameters, roles, config.train, config.optim, config.curvature, config.c3o)
    log, clock, features = MetricsLog(run_dir), make_clock(CPU), FeatureSet([Counting()])
    settings = StepSettings(CPU, bf16=False, micro_batch=6, grad_clip=config.train.grad_clip)
    stepper = Stepper(
        model, optimizers, settings, clock, on_loss=lambda s: None, on_retry=features.retry, on_event=log.event
    )
    meter, progress, registry = IntervalMeter(CPU), Progress(), StateRegistry()
    registry.register_tensors("model", model.state_dict, model.load_state_dict)
    registry.register_tensors("optim", optimizers.tensors, optimizers.load_tensors)
    parts = {"progress": progress, "data": data, "features": features, "stepper": stepper, "meter": meter}
    for name, part in parts.items():
        registry.register(name, part.state_dict, part.load_state_dict)
    registry.register("rng", read_rng, write_rng)
    store = CheckpointStore(
        run_dir, {}, save_interval=config.run.save_interval, save_minutes=config.run.save_minutes, keep=99
    )
    return Trainer(
        config=config, run_dir=run_dir, model=model, data=data, stepper=stepper, features=features,
        evaluator=judge, sampler=Writer(),  # pyright: ignore[reportArgumentType]
        saver=Saver(store, registry, lambda: (progress.tokens, progress.val_bpb), lambda e: None),
        log=log, clock=clock, meter=meter, speed=SpeedMeter(None, None), stop=StopRequest(), lock=lock,
        progress=progress,
        startup={"device": "cpu", "device_name": "test", "torch_compile_enabled": config.train.torch_compile,
                 "torch_compile_active": False, "steps": config.train.steps},
        on_start=lambda step: None,
    )  # fmt: skip


def rows(trainer: Trainer, kind: str) -> list[dict[str, Any]]:
    lines = (trainer.run_dir / "metrics.jsonl").read_bytes().splitlines()
    return [row for row in map(loads, lines) if row["kind"] == kind]


def steps_of(trainer: Trainer, kind: str) -> list[int]:
    return [row["step"] for row in rows(trainer, kind)]


def saved(trainer: Trainer) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (trainer.run_dir / "checkpoints").iterdir())


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(trainer: Trainer, step: int) -> Trainer:
    """Ask for a stop while `step` is being trained."""
    plain = trainer.stepper.train

    def train(s: StepState, scale: float) -> Any:
        if s.step == step:
            trainer.stop.request("SIGTERM")
        return plain(s, scale)

    trainer.stepper.train = train  # type: ignore[method-assign]
    return trainer


def test_a_run_finishes_with_its_rows_checkpoint_and_status(make: Any) -> None:
    trainer = make(eval_interval=5, sample_interval=5)
    outcome = trainer.run()
    assert (outcome.state, outcome.step, outcome.exit_code) == ("finished", 10, 0)
    assert steps_of(trainer, "train") == [2, 4, 6, 8, 10]
    assert steps_of(trainer, "eval") == [5, 10]
    assert steps_of(trainer, "sample") == [5, 10]
    assert saved(trainer) == [4, 8, 10]
    assert load_file(trainer.run_dir / "status.json")["state"] == "finished"
    assert (trainer.run_dir / "report.html").exists()
    assert trainer.data.closed


def test_an_exception_in_a_step_leaves_crashed_in_the_status(make: Any) -> None:
    trainer = make()
    trainer.stepper.train = None
    with pytest.raises(TypeError):
        trainer.run()
    assert load_file(trainer.run_dir / "status.json")["state"] == "crashed"


def count_stamps(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that were done when a stamp was left."""
    left: list[int] = []
    trainer.stamp = KernelStamp(trainer.run_dir, {})
    monkeypatch.setattr(trainer.stamp, "leave", lambda: left.append(trainer.progress.step))
    return left


def test_the_first_step_leaves_a_stamp_and_no_later_one_does(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = stop_after(make(), 3)
    left = count_stamps(trainer, monkeypatch)
    trainer.run()
    assert left == [1]


def test_a_first_step_that_fails_leaves_no_stamp(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make()
    left = count_stamps(trainer, monkeypatch)
    trainer.stepper.train = None
    with pytest.raises(TypeError):
        trainer.run()
    assert left == []


def test_the_loss_falls(make: Any) -> None:
    trainer = make(steps=120, log_interval=10, save_interval=0, save_minutes=0.0)
    trainer.run()
    losses = [row["loss"] for row in rows(trainer, "train")]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_continues_to_the_same_weights(make: Any, optimizer: str) -> None:
    whole = make("whole", optimizer=optimizer)
    whole.run()
    stop_after(make("cut", optimizer=optimizer), 3).run()
    stop_after(make("cut", optimizer=optimizer), 7).run()
    last = make("cut", optimizer=optimizer)
    assert last.run().state == "finished"
    assert same(weights(last), weights(whole))
    assert same(last.stepper.optimizers.tensors(), whole.stepper.optimizers.tensors())


def test_a_stopped_run_writes_the_same_numbers(make: Any) -> None:
    whole = make("whole")
    whole.run()
    stop_after(make("cut"), 3).run()
    last = make("cut")
    last.run()
    names = ("step", "loss", "loss_ema", "train_bpb", "grad_norm", "lr", "tokens_seen_total", "feature_counting_calls")
    table = [[[row[name] for name in names] for row in rows(t, "train")] for t in (whole, last)]
    assert table[0] == table[1]


def test_a_stop_saves_the_finished_step_and_says_who_asked(make: Any) -> None:
    trainer = stop_after(make(), 3)
    outcome = trainer.run()
    assert (outcome.state, outcome.step, outcome.exit_code, outcome.signal_name) == ("interrupted", 3, 143, "SIGTERM")
    assert saved(trainer) == [3]
    assert load_file(trainer.run_dir / "status.json")["state"] == "interrupted"


def test_a_stop_before_the_first_step_trains_and_saves_nothing(make: Any) -> None:
    trainer = make()
    trainer.stop.request("SIGINT")
    outcome = trainer.run()
    assert (outcome.step, outcome.exit_code) == (0, 130)
    assert saved(trainer) == []


def test_a_stop_while_waiting_for_data_saves_the_finished_step(make: Any) -> None:
    trainer = make()
    plain = trainer.data.next_batch

    def waiting() -> Any:
        if trainer.progress.step == 5:
            trainer.stop.request("SIGINT")
            raise StopWaitingError("asked to end")
        return plain()

    trainer.data.next_batch = waiting  # type: ignore[method-assign]
    outcome = trainer.run()
    assert (outcome.state, outcome.step, outcome.exit_code) == ("interrupted", 5, 130)
    assert saved(trainer)[-1] == 5


def test_a_finished_run_does_nothing_again(make: Any) -> None:
    judge = Judge()
    make(judge=judge).run()
    again = make(judge=judge)
    before = (again.run_dir / "metrics.jsonl").read_bytes()
    outcome = again.run()
    assert (outcome.state, outcome.step, outcome.exit_code) == ("already_finished", 10, 0)
    assert (again.run_dir / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_before_its_final_validation_makes_up_for_it(make: Any) -> None:
    judge = Judge()
    judge.stopped = True
    assert make(judge=judge).run().state == "interrupted"
    judge.stopped = False
    assert make(judge=judge).run().state == "finished"
    assert judge.final_step == 10


def test_more_steps_continue_a_finished_run(make: Any) -> None:
    judge = Judge()
    make(judge=judge).run()
    longer = make(judge=judge, steps=12)
    assert longer.run().step == 12
    assert steps_of(longer, "train")[-1] == 12


def test_no_resume_starts_anew_and_keeps_the_old_checkpoints(make: Any) -> None:
    judge = Judge()
    make(judge=judge).run()
    anew = make(judge=judge, resume=False)
    assert anew.run().step == 10
    assert [row["checkpoint_resume_step"] for row in rows(anew, "startup")] == [None, None]
    assert (anew.run_dir / "checkpoints-replaced").is_dir()


def test_too_many_skips_in_a_row_stop_the_run(make: Any) -> None:
    trainer = make(max_skipped_steps=3)
    trainer.model.poison = True
    before = weights(trainer)
    with pytest.raises(DivergedError, match="lower --lr"):
        trainer.run()
    assert same(weights(trainer), before)
    assert trainer.data.closed


def test_fewer_skips_are_counted_and_training_goes_on(make: Any) -> None:
    trainer = make()
    plain = trainer.stepper.train

    def train(s: StepState, scale: float) -> Any:
        trainer.model.poison = s.step in (3, 4)
        return plain(s, scale)

    trainer.stepper.train = train
    trainer.run()
    assert [row["skipped_steps"] for row in rows(trainer, "train")] == [0, 2, 2, 2, 2]


def test_phases_add_up_to_the_wall_time(make: Any) -> None:
    trainer = make(steps=60, log_interval=30)
    trainer.run()
    row = rows(trainer, "train")[-1]
    total = sum(row[f"phase_{phase}_s"] for phase in PHASES)
    assert total == pytest.approx(row["wall_s"], rel=0.02)
    core = sum(row[f"phase_{phase}_s"] for phase in CORE_PHASES)
    assert row["core_tokens_per_s"] == pytest.approx(30 * 30 / core)


def test_counters_cover_committed_steps(make: Any) -> None:
    stop_after(make(), 3).run()
    last = make()
    last.run()
    row = rows(last, "train")[-1]
    assert (row["feature_counting_calls"], row["feature_counting_effective_calls"]) == (20, 10)


def test_the_crash_report_knows_the_step_and_the_records(make: Any) -> None:
    trainer = make()
    plain = trainer.data.next_batch

    def fail_at_four() -> Any:
        if trainer.data.position == 3:
            raise RuntimeError("bad record")
        return plain()

    trainer.data.next_batch = fail_at_four
    with pytest.raises(RuntimeError, match="bad record"):
        trainer.run()
    context = trainer.crash_context()
    assert (context.step, context.tokens_seen, context.last_batch_records) == (3, 90, (("tiny", "3"),))
    assert context.last_metrics is not None
    assert context.last_metrics["step"] == 2


def test_the_lock_is_given_back(make: Any) -> None:
    make().run()
    make(steps=12).run()


@pytest.mark.parametrize("item", ["progress", "data", "features", "stepper", "meter", "rng", "model", "optim"])
def test_every_saved_item_matters(make: Any, item: str) -> None:
    """Change one item of the checkpoint before the resume: the run must end differently."""
    reference = fingerprint(make, "reference", None)
    assert fingerprint(make, "untouched", None) == reference
    assert fingerprint(make, "changed", item) != reference


def fingerprint(make: Any, folder: str, item: str | None) -> str:
    options = {"save_interval": 5, "grad_clip": 0.0}
    stop_after(make(folder, **options), 5).run()
    last = make(folder, **options)
    registry = last.saver.registry
    if item is not None and item in registry.names():
        get, set_item = registry._items[item]
        registry._items[item] = (get, lambda value: set_item(MUTATIONS[item](value)))
    elif item is not None:
        get, set_group = registry._groups[item]
        registry._groups[item] = (get, lambda group: set_group({name: t + 1 for name, t in group.items()}))
    last.run()
    numbers = [{k: v for k, v in row.items() if k in COMPARED} for row in rows(last, "train")]
    model = {name: value.tolist() for name, value in last.model.state_dict().items()}
    return repr((numbers, model, last.saver.registry.read() | {"status": None}))


COMPARED = ("step", "loss", "loss_ema", "skipped_steps", "tokens_seen_total", "micro_batch", "feature_counting_calls")
MUTATIONS: dict[str, Callable[[Any], Any]] = {
    "progress": lambda v: v | {"tokens": v["tokens"] + 1},
    "data": lambda v: {"position": v["position"] + 1},
    "features": lambda v: v | {"calls": {"counting": 0}},
    "stepper": lambda v: v | {"micro_batch": 2},
    "meter": lambda v: v | {"loss_ema": 0.0},
    "rng": lambda v: v | {"python": [v["python"][0], [1] * 624 + [624], None]},
}
