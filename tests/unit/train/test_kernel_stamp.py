"""A start rehearses its first step unless one like it has left its stamp in Triton's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from sigma.core.strict_json import loads
from sigma.train.kernel_stamp import SUFFIX, KernelStamp
from sigma.train.verify_checkpoint import CHECKPOINTS_DIR, COMMIT, folder_name
from sigma_kernels import pipelining, tuned
from sigma_kernels.ahead import KernelsAhead
from tests.e2e.tiny_trainer import build
from tests.kernels.fake_gpu import FakeDriver, fake_gpu, forget_kernels


def stamps(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"*{SUFFIX}"))


@pytest.fixture
def cache(tmp_path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def gpu(cache, monkeypatch) -> Iterator[FakeDriver]:
    monkeypatch.setattr(KernelsAhead, "_load", lambda self, kernel, specialization: None)
    with fake_gpu(cache) as fake:
        yield fake


def start(tmp_path: Path, *, step: bool = True, **flags: Any) -> int:
    """Kernels ahead of a start; with `step` its first step ends well."""
    forget_kernels()
    trainer = build(tmp_path / "run", **flags)
    if step and trainer.stamp is not None:
        trainer.stamp.leave()
    trainer.close()
    return trainer.startup["kernels_ahead"]


def test_only_the_first_of_two_equal_starts_rehearses(gpu, tmp_path, cache):
    assert start(tmp_path) > 10
    assert len(stamps(cache)) == 1
    assert start(tmp_path) == 0
    assert len(stamps(cache)) == 1


def test_a_start_without_a_first_step_leaves_no_stamp(gpu, tmp_path, cache):
    first = start(tmp_path, step=False)
    assert stamps(cache) == []
    assert start(tmp_path) == first > 0


def commit(run: Path, step: int) -> None:
    folder = run / CHECKPOINTS_DIR / folder_name(step)
    folder.mkdir(parents=True)
    (folder / COMMIT).touch()


@pytest.mark.parametrize(("step", "resume", "rehearsed"), [(6, True, False), (5, True, True), (6, False, True)])
def test_a_run_without_a_step_left_is_not_rehearsed_for(gpu, tmp_path, step, resume, rehearsed):
    commit(tmp_path / "run", step)
    trainer = build(tmp_path / "run", steps=6, resume=resume)
    trainer.close()
    assert ("kernels_ahead" in trainer.startup) == (trainer.stamp is not None) == rehearsed


@pytest.mark.parametrize(
    "flags", [{"n_layers": 3}, {"optimizer": "adamw"}, {"micro_batch_size": 4}, {"precision": "bf16"}], ids=str
)
def test_another_configuration_is_rehearsed(gpu, tmp_path, cache, flags):
    start(tmp_path)
    assert start(tmp_path, **flags) > 0
    assert len(stamps(cache)) == 2


def test_another_folder_or_length_of_the_log_is_no_other_start(gpu, tmp_path):
    start(tmp_path)
    assert start(tmp_path / "elsewhere", log_interval=5) == 0


CHANGES = {
    "device": lambda gpu, patch: setattr(gpu, "name", "an H100"),
    "target": lambda gpu, patch: setattr(gpu, "target", gpu.target.__class__("cuda", 100, 32)),
    "sources": lambda gpu, patch: patch.setattr(tuned, "fingerprint", lambda: "other"),
    "triton": lambda gpu, patch: patch.setattr("triton.__version__", "9.9"),
    "pipelines": lambda gpu, patch: patch.setattr(pipelining, "_on", False),
    "launches": lambda gpu, patch: patch.setattr(tuned, "_rows", {("scan", "key"): {"rows": 32}}),
    "build": lambda gpu, patch: patch.setattr("sigma.train.kernel_stamp.build_id", lambda: "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_binaries_are_rehearsed(gpu, tmp_path, cache, monkeypatch, change):
    start(tmp_path)
    CHANGES[change](gpu, monkeypatch)
    assert start(tmp_path) > 0
    assert len(stamps(cache)) == 2


def test_a_folder_that_cannot_be_written_only_costs_the_rehearsal(gpu, tmp_path, cache, monkeypatch):
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(path)

    monkeypatch.setattr("sigma.train.kernel_stamp.write_atomic", refuse)
    assert start(tmp_path) == start(tmp_path) > 0
    assert stamps(cache) == []


def test_a_cache_that_was_emptied_is_rehearsed_for(gpu, tmp_path, cache):
    start(tmp_path)
    for stamp in stamps(cache):
        stamp.unlink()
    assert start(tmp_path) > 0


@pytest.mark.parametrize("keep", [0, 20])
def test_a_torn_stamp_is_none_and_is_replaced(tmp_path, keep):
    stamp = KernelStamp(tmp_path, {"device": "a GPU"})
    assert not stamp.is_left()
    stamp.leave()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    assert not stamp.is_left()
    stamp.leave()
    assert stamp.is_left()
    assert file.read_bytes() == whole
    assert loads(whole)["device"] == "a GPU"


def test_a_folder_in_the_place_of_the_stamp_or_of_nothing_is_no_error(tmp_path):
    missing = KernelStamp(tmp_path / "missing", {})
    missing.leave()
    assert not missing.is_left()
    stamp = KernelStamp(tmp_path, {})
    stamp.leave()
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    stamp.leave()
    assert not stamp.is_left()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
