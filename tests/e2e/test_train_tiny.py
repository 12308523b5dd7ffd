"""The trainer with its real parts and a model of a few thousand parameters, in this process."""

import hashlib
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

import sigma.build
from sigma.build import build_trainer
from sigma.config.c3o import C3OSection
from sigma.config.curvature import CurvatureSection
from sigma.config.data import DataSection
from sigma.config.model import ModelSection
from sigma.config.optim import OptimSection
from sigma.config.presets import resolve
from sigma.config.resolved import load_resolved
from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma.config.train import TrainSection
from sigma.core.errors import SigmaError
from sigma.core.stop import StopRequest
from sigma.core.strict_json import load_file, loads
from sigma.data.record import Record
from sigma.data.validation import Validation
from sigma.train.feature import StepState
from sigma.train.loop import DivergedError, Trainer
from sigma.train.rollback import Rollback
from sigma_kernels import counters
from tests.unit.data.loopback import loopback_hub

MODEL = {
    "d_model": 16, "n_layers": 2, "mamba_ratio": 1, "attention_ratio": 1, "ssm_state": 8, "ssm_head_dim": 8,
    "mimo_rank": 2, "ssm_chunk": 16, "n_heads": 2, "attention_head_dim": 8, "kv_latent_dim": 8, "d_ff": 8,
    "n_routed_experts": 4, "moe_top_k": 2,
}  # fmt: skip
DATA = {
    "seq_len": 24, "batch_size": 4, "micro_batch_size": 2, "tokenizer": "bytes", "val_max_tokens": 256,
    "source_prefetch": 2,
}  # fmt: skip
RUN = {
    "device": "cpu", "log_interval": 2, "save_interval": 3, "save_minutes": 0.0, "eval_interval": 0,
    "sample_interval": 0, "sample_tokens": 3,
}  # fmt: skip
TRAIN = {"steps": 6, "lr": 4e-3, "adam_lr": 3e-3}
ON_GPU = {"device": "cuda", "deterministic": True}
LEAN = {
    "optimizer": "normuon", "momentum_dtype": "int8", "weight_dtype": "bf16_residual", "precision": "bf16",
    "cautious_weight_decay": True,
}  # fmt: skip
SECTIONS = {
    "run": (RunSection, RUN),
    "model": (ModelSection, MODEL),
    "data": (DataSection, DATA),
    "train": (TrainSection, TRAIN),
    "optim": (OptimSection, {}),
    "curvature": (CurvatureSection, {}),
    "c3o": (C3OSection, {}),
}
Make = Callable[..., Trainer]


class ShortValidation(Validation):
    """The beginnings of two held-out passages instead of a megabyte."""

    def documents(self, kind: Any = "natural") -> list[Record]:
        return [replace(record, text=record.text[:200]) for record in super().documents(kind)[:2]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Build a trainer; keyword arguments are flags of any section."""
    monkeypatch.setattr(sigma.build, "Validation", ShortValidation)
    built: list[Trainer] = []

    def build(folder: str = "run", stop: StopRequest | None = None, **flags: Any) -> Trainer:
        sections = {}
        for name, (kind, values) in SECTIONS.items():
            own = {flag: flags.pop(flag) for flag in list(flags) if flag in kind.__dataclass_fields__}
            sections[name] = kind(**({"output_dir": tmp_path / folder} if name == "run" else {}) | values | own)
        assert not flags
        memory_gb = 100.0 if sections["run"].device == "cuda" else None
        built.append(build_trainer(resolve(RunConfig(**sections), memory_gb), stop=stop))
        return built[-1]

    before = torch.are_deterministic_algorithms_enabled()
    yield build
    for trainer in built:
        trainer.close()
    torch.use_deterministic_algorithms(before)
    counters.load({})


def rows(trainer: Trainer, kind: str = "train") -> list[dict[str, Any]]:
    lines = (trainer.run_dir / "metrics.jsonl").read_bytes().splitlines()
    return [row for row in map(loads, lines) if row["kind"] == kind]


def digest(trainer: Trainer, step: int) -> str:
    return hashlib.sha256((trainer.run_dir / f"checkpoints/step-{step:09d}/model.safetensors").read_bytes()).hexdigest()


def train_steps(trainer: Trainer, steps: int) -> list[float]:
    """Losses of single steps, without the loop."""
    losses = []
    for step in range(1, steps + 1):
        s = StepState(step, trainer.data.next_batch())
        losses.append(float(trainer.stepper.train(s, 1.0).loss))
    return losses


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_falls(make: Make) -> None:
    losses = train_steps(make(lr=1e-2, adam_lr=1e-2, batch_size=8, micro_batch_size=8), 40)
    assert sum(losses[-5:]) / 5 < sum(losses[:2]) / 2 - 1.0


def test_a_run_leaves_every_file_that_it_promises(make: Make) -> None:
    trainer = make()
    assert trainer.run().state == "finished"
    names = {"metrics.jsonl", "run_manifest.json", "resolved_args.txt", "status.json", "report.html", "final.json"}
    assert names <= {path.name for path in trainer.run_dir.iterdir()}
    assert [path.name for path in (trainer.run_dir / "samples").iterdir()] == ["step-000000006.txt"]
    manifest = load_file(trainer.run_dir / "run_manifest.json")
    assert manifest["hashes"].keys() == {"corpus", "tokenizer"}
    assert manifest["config"]["train"]["lr"] == TRAIN["lr"]
    assert [start["step"] for start in manifest["starts"]] == [0]


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


@pytest.mark.parametrize("q_latent", [0, 8])
@pytest.mark.parametrize("shared", [0, 2])
def test_feature_counters_equal_their_closed_form(make: Make, q_latent: int, shared: int) -> None:
    trainer = make(n_layers=3, mamba_ratio=2, q_latent_dim=q_latent, n_shared_experts=shared, micro_batch_size=1)
    trainer.run()
    row, forwards = rows(trainer)[-1], TRAIN["steps"] * 4
    regions = 3 * (3 + shared) + 2 + 1 * (2 + bool(q_latent))
    assert row["feature_instant_calls"] == row["feature_instant_effective_calls"] == forwards * regions
    assert row["feature_diff_mla_calls"] == row["feature_diff_mla_effective_calls"] == forwards
    assert row["instant_saved_bytes_per_row"] > 0
    assert row["instant_compression_ratio"] > 1


def test_without_the_subtraction_differential_attention_is_not_effective(make: Make) -> None:
    trainer = make()
    for module in trainer.model.modules():
        if hasattr(module, "lambda_logit"):
            module.lambda_logit = -torch.inf
    trainer.run()
    row = rows(trainer)[-1]
    assert (row["feature_diff_mla_calls"], row["feature_diff_mla_effective_calls"]) == (12, 0)


def test_features_that_are_off_say_so(make: Make) -> None:
    trainer = make(instant_enabled=False, attention_ratio=0)
    trainer.run()
    row = rows(trainer)[-1]
    for name in ("instant", "diff_mla"):
        assert [row[f"feature_{name}_{part}"] for part in ("enabled", "calls", "effective_calls")] == [0, 0, 0]


def test_validation_and_samples_leave_the_training_alone(make: Make) -> None:
    quiet, busy = make("quiet"), make("busy", eval_interval=1, sample_interval=1)
    quiet.run(), busy.run()
    assert digest(quiet, 6) == digest(busy, 6)
    assert len(rows(busy, "sample")) == TRAIN["steps"]
    counted = [name for name in rows(quiet)[-1] if name.endswith("_calls")]
    assert [rows(quiet)[-1][name] for name in counted] == [rows(busy)[-1][name] for name in counted]


def test_every_column_is_documented(make: Make) -> None:
    trainer = make(eval_interval=3)
    trainer.run()
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"`([a-zX0-9_]+)`", text))
    lines = (trainer.run_dir / "metrics.jsonl").read_bytes().splitlines()
    feature = re.compile(rf"^feature_({'|'.join(sigma.build.FEATURE_NAMES)})_")
    columns = {feature.sub("feature_X_", name) for line in lines for name in loads(line)}
    columns = {re.sub(r"^data_(tokens|dropped)_\w+", r"data_\1_X", name) for name in columns}
    known = documented | {f"feature_X_{part}" for part in ("enabled", "calls", "effective_calls", "s")}
    assert columns - known == set()


# ---- every flag changes something ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        {"seed": 7},
        {"tokenizer": "bpe8k"},
        {"seq_len": 32},
        {"batch_size": 6},
        {"micro_batch_size": 4},
        {"synthetic_ratio": 0.9, "code_ratio": 0.0},
        {"code_ratio": 0.9},
        {"precision": "bf16"},
        {"grad_clip": 0.01},
        {"optimizer": "adamw"},
        {"lr": 1e-2},
        {"adam_lr": 1e-2},
        {"weight_decay": 0.0},
    ],
    ids=lambda flags: next(iter(flags)),
)
def test_the_flag_changes_the_weights(make: Make, flags: dict[str, Any]) -> None:
    plain, changed = make("plain"), make("changed", **flags)
    train_steps(plain, 2), train_steps(changed, 2)
    assert not same(weights(plain), weights(changed))


@pytest.mark.parametrize("flags", [{"warmup_share": 0.9, "decay_share": 0.0}, {"decay_share": 0.9}], ids=str)
def test_the_shares_change_the_learning_rate(make: Make, flags: dict[str, Any]) -> None:
    plain, changed = make("plain"), make("changed", **flags)
    plain.run(), changed.run()
    assert [row["lr"] for row in rows(plain)] != [row["lr"] for row in rows(changed)]


def test_save_interval_steps_and_max_checkpoints_decide_what_is_kept(make: Make) -> None:
    kept = {}
    for options in ({}, {"save_interval": 2}, {"max_checkpoints": 1}, {"steps": 5}):
        trainer = make(str(len(kept)), **options)
        trainer.run()
        kept[str(options)] = sorted(path.name[-2:] for path in (trainer.run_dir / "checkpoints").glob("step-*"))
    assert list(kept.values()) == [["03", "06"], ["02", "04", "06"], ["03", "06"], ["03", "05"]]


def test_save_minutes_saves_by_time(make: Make) -> None:
    trainer = make(save_interval=0, save_minutes=1e-9)
    trainer.run()
    assert len(list((trainer.run_dir / "checkpoints").glob("step-*"))) > 1


def test_checkpoint_budget_limits_the_disk(make: Make) -> None:
    kept = []
    for budget in (1.0, 1e-6):
        trainer = make(str(budget), save_interval=1, max_checkpoints=5, checkpoint_budget_gb=budget)
        trainer.run()
        kept.append(len(list((trainer.run_dir / "checkpoints").glob("step-*"))))
    assert kept[1] < kept[0]


def test_log_eval_and_sample_intervals_are_obeyed(make: Make) -> None:
    trainer = make(log_interval=3, eval_interval=2, sample_interval=4)
    trainer.run()
    assert [[row["step"] for row in rows(trainer, kind)] for kind in ("train", "eval", "sample")] == [
        [3, 6],
        [2, 4, 6],
        [4, 6],
    ]


def test_sample_tokens_and_val_max_tokens_are_lengths(make: Make) -> None:
    trainer = make(eval_interval=3, val_max_tokens=256, sample_tokens=1)
    trainer.run()
    assert rows(trainer, "eval")[0]["val_tokens"] == 256
    assert all(len(text) <= 1 for text in rows(trainer, "sample")[-1]["texts"])


def test_resume_off_starts_anew(make: Make) -> None:
    make().run()
    again = make(resume=False)
    assert again.run().state == "finished"
    assert [row["checkpoint_resume_step"] for row in rows(again, "startup")] == [None, None]
    assert load_resolved(again.run_dir / "resolved_args.txt").run.resume


def test_source_prefetch_uses_a_thread_and_changes_no_batch(make: Make) -> None:
    with_thread, without = make("with"), make("without", source_prefetch=0)
    assert torch.equal(with_thread.data.next_batch().input_ids_BT, without.data.next_batch().input_ids_BT)
    assert (with_thread.data._prefetcher is None, without.data._prefetcher is None) == (False, True)  # type: ignore[attr-defined]


def test_instant_off_keeps_more_and_computes_the_same(make: Make) -> None:
    on, off = make("on"), make("off", instant_enabled=False)
    assert train_steps(on, 2) == train_steps(off, 2)
    assert same(weights(on), weights(off))
    assert counters.get("instant.recompute") > 0


def test_torch_compile_on_the_cpu_is_ignored_aloud(make: Make) -> None:
    trainer = make(torch_compile=True)
    trainer.run()
    assert [row["event"] for row in rows(trainer, "event")] == ["torch_compile_ignored"]


def test_max_skipped_steps_is_the_limit(make: Make) -> None:
    trainer = make(max_skipped_steps=2)
    trainer.model.get_parameter("model.norm.weight").register_hook(lambda g: g * torch.nan)
    with pytest.raises(DivergedError, match="2 updates in a row"):
        trainer.run()


def test_wandb_starts_the_relay(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(sigma.build.wandb_relay, "start", lambda *arguments: started.append(arguments))
    trainer = make(wandb="offline")
    trainer.run()
    assert [arguments[:2] for arguments in started] == [(trainer.run_dir, "offline")]


# ---- on a GPU ------------------------------------------------------------------------------------------------------


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


@pytest.mark.gpu
def test_phases_on_cuda_add_up_to_the_wall_time(make: Make) -> None:
    trainer = make(steps=20, log_interval=10, device="cuda")
    trainer.run()
    row = rows(trainer)[-1]
    phases = {name: value for name, value in row.items() if name.startswith("phase_")}
    assert sum(phases.values()) == pytest.approx(row["wall_s"], rel=0.02)
    assert min(phases[f"phase_{name}_s"] for name in ("forward", "backward", "opt_step")) > 0
    assert 0 < row.get("mfu", 0.1) < 1


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


DEAD = {"data_backend": "hybrid", "bootstrap_seed_batches": 0, "source_read_timeout_sec": 0.5}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every remote source refuses the connection."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for name in ("HF_ENDPOINT", "COMMONCRAWL_ENDPOINT"):
        monkeypatch.setenv(name, url)


def test_with_all_sources_dead_hybrid_trains_the_bits_of_bundled_and_says_so_once(make: Make, no_network: None) -> None:
    bundled, hybrid = make("bundled"), make("hybrid", **DEAD)
    bundled.run(), hybrid.run()
    assert digest(bundled, 6) == digest(hybrid, 6)
    told = [(row["event"], row["source"]) for row in rows(hybrid, "event")]
    assert sorted(told) == [("source_absent", name) for name in ("commoncrawl", "cosmopedia", "fineweb")]
    assert all(row["reason"] for row in rows(hybrid, "event"))
    last = rows(hybrid)[-1]
    assert last["data_outages"] == 3
    assert last["data_substitutions"] > 0
    assert last["data_tokens_natural"] == rows(bundled)[-1]["data_tokens_natural"]
    assert not (bundled.run_dir / "data_journal.jsonl").exists()


def test_bootstrap_batches_ask_no_network(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for name in ("HF_ENDPOINT", "COMMONCRAWL_ENDPOINT"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        hybrid = make("hybrid", **DEAD | {"bootstrap_seed_batches": 99})
        hybrid.run()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert rows(hybrid, "event") == []
    bundled = make("bundled")
    bundled.run()
    assert digest(bundled, 6) == digest(hybrid, 6)


def test_an_interrupted_hybrid_run_ends_with_the_same_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"data_backend": "hybrid", "bootstrap_seed_batches": 0, "source_read_timeout_sec": 60.0, "batch_size": 16}
    with loopback_hub(documents=45) as hub:
        for name in ("HF_ENDPOINT", "COMMONCRAWL_ENDPOINT"):
            monkeypatch.setenv(name, hub.url)
        whole = make("whole", **flags)
        whole.run()
        for _ in range(2):
            stop = StopRequest()
            part = make("part", stop=stop, **flags)
            step = part._step
            part._step = lambda step=step, stop=stop: (step(), stop.request())  # type: ignore[method-assign]
            part.run()
        last = make("part", **flags)
        last.run()
    assert digest(whole, 6) == digest(last, 6)
    held = [trainer.run_dir / "checkpoints" / "step-000000006" for trainer in (whole, last)]
    assert len({(folder / "stream.safetensors").read_bytes() for folder in held}) == 1
    states = [load_file(folder / "state.json")["data"] for folder in held]
    assert [name for name in states[0] if states[0][name] != states[1][name]] == ["journal"], "which notes each start"
    tokens = {name: value for name, value in rows(last)[-1].items() if name.startswith("data_tokens")}
    assert tokens == {name: value for name, value in rows(whole)[-1].items() if name.startswith("data_tokens")}
    assert {"data_tokens_fineweb", "data_tokens_commoncrawl"} & tokens.keys()
