"""Every flag changes something."""

from typing import Any

import pytest
import torch

import sigma.build
from sigma_kernels import counters
from tests.e2e.tiny_trainer import Make, rows, same, train_steps, weights


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


def test_instant_off_keeps_more_and_computes_the_same(make: Make) -> None:
    on, off = make("on"), make("off", instant_enabled=False)
    assert train_steps(on, 2) == train_steps(off, 2)
    assert same(weights(on), weights(off))
    assert counters.get("instant.recompute") > 0


def test_torch_compile_on_the_cpu_is_ignored_aloud(make: Make) -> None:
    trainer = make(torch_compile=True)
    trainer.run()
    assert [row["event"] for row in rows(trainer, "event")] == ["torch_compile_ignored"]


@pytest.mark.parametrize(
    "flags, said", [({}, "not on a CUDA device"), ({"optim_graph": False}, "it is off")], ids=["cpu", "flag"]
)
def test_the_startup_row_says_why_the_optimizer_has_no_graph(make: Make, flags: dict[str, Any], said: str) -> None:
    trainer = make(**flags)
    assert said in trainer.startup["optim_graph"]
    train_steps(trainer, 1)
    assert trainer.stepper.optimizers.metrics()["optim_eager_steps"] == 1


def test_wandb_starts_the_relay(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(sigma.build.wandb_relay, "start", lambda *arguments: started.append(arguments))
    trainer = make(wandb="offline")
    trainer.run()
    assert [arguments[:2] for arguments in started] == [(trainer.run_dir, "offline")]


def test_source_prefetch_uses_a_thread_and_changes_no_batch(make: Make) -> None:
    with_thread, without = make("with"), make("without", source_prefetch=0)
    assert torch.equal(with_thread.data.next_batch().input_ids_BT, without.data.next_batch().input_ids_BT)
    assert (with_thread.data._prefetcher is None, without.data._prefetcher is None) == (False, True)  # type: ignore[attr-defined]
