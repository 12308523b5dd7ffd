import shutil
import time

import pytest
import torch

from sigma.config.data import DataSection
from sigma.config.model import ModelSection
from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma.config.train import TrainSection
from sigma.data.tokenizer import train_bpe
from sigma.train import ballast, checkpoint, quarantine
from sigma.train.ballast import BALLAST_NAME, DiskFullError
from sigma.train.checkpoint import CheckpointStore
from sigma.train.compatibility import identity_of
from sigma.train.retention import Kept, select_for_deletion
from sigma.train.tensor_file import specs_of
from sigma.train.verify_checkpoint import (
    IncompatibleCheckpointError,
)
from tests.unit.train.checkpoint_cases import flip, folder, groups, kinds, make_store, names, save

# --- incompatible configurations ---


def unchanged(run_dir):
    return {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


def test_another_configuration_is_an_error_with_a_diff_and_touches_nothing(tmp_path):
    save(make_store(tmp_path), 1)
    before = unchanged(tmp_path)
    other = {"model": {"d_model": 16, "mimo_rank": 2}, "train": {"optimizer": "muon"}}
    with pytest.raises(IncompatibleCheckpointError) as caught:
        CheckpointStore(tmp_path, other).load()
    text = str(caught.value)
    assert caught.value.exit_code == 2
    assert "--d-model: 8 in the checkpoint, 16 now" in text
    assert "--optimizer: adamw in the checkpoint, muon now" in text
    assert "--mimo-rank: nothing in the checkpoint, 2 now" in text
    assert unchanged(tmp_path) == before


def test_other_names_shapes_or_dtypes_are_an_error_with_a_diff_before_anything_is_read(tmp_path, monkeypatch):
    save(make_store(tmp_path), 1)
    before = unchanged(tmp_path)
    model = dict(groups(1)["model"])
    model["scale"] = torch.zeros(2)
    model["embed.weight"] = model["embed.weight"].double()
    model["new"] = torch.zeros(1)
    del model["none"]
    monkeypatch.setattr(checkpoint, "read_tensors", lambda _: pytest.fail("allocated"))
    with pytest.raises(IncompatibleCheckpointError) as caught:
        make_store(tmp_path).load({"model": specs_of(model)})
    text = str(caught.value)
    assert "model: scale: F32[] in the checkpoint, F32[2] now" in text
    assert "model: embed.weight: F32[3, 5] in the checkpoint, F64[3, 5] now" in text
    assert "model: new: nothing in the checkpoint, F32[1] now" in text
    assert "model: none: F32[0, 4] in the checkpoint, nothing now" in text
    assert unchanged(tmp_path) == before
    make_store(tmp_path).load({"model": specs_of(groups(1)["model"])})


def test_a_long_diff_is_cut_and_counted(tmp_path):
    save(make_store(tmp_path), 1)
    many = {f"w{i}": torch.zeros(1) for i in range(30)}
    with pytest.raises(IncompatibleCheckpointError, match="and 22 more"):
        make_store(tmp_path).load({"model": specs_of(many)})


def test_a_newer_format_is_an_error_that_names_the_program(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA", 99)
    save(make_store(tmp_path), 1)
    before = unchanged(tmp_path)
    with pytest.raises(IncompatibleCheckpointError, match=r"format 99.*program version"):
        make_store(tmp_path).load()
    assert unchanged(tmp_path) == before


def test_identity_holds_what_cannot_change_and_nothing_that_may():
    base = RunConfig()
    same = RunConfig(
        run=RunSection(seed=5, save_interval=7), train=TrainSection(steps=9, lr=0.1), data=DataSection(seq_len=16)
    )
    assert identity_of(base) == identity_of(same)
    for other in (
        RunConfig(model=ModelSection(d_model=32)),
        RunConfig(train=TrainSection(optimizer="adamw")),
        RunConfig(data=DataSection(tokenizer="bytes")),
    ):
        assert identity_of(base) != identity_of(other)


def test_a_tokenizer_is_the_same_wherever_its_file_lies(tmp_path):
    contents = [train_bpe([text], 280) for text in ("the cat sat on the mat", "another text altogether")]
    for name, content in zip(("one", "copy", "other"), [contents[0], *contents], strict=True):
        (tmp_path / name).write_text(content, "utf-8")
    one, copy, other = (
        identity_of(RunConfig(data=DataSection(tokenizer=tmp_path / name))) for name in ("one", "copy", "other")
    )
    assert one == copy != other


# --- start, cadence, retention ---


def test_start_removes_torn_saves_half_deleted_folders_and_our_temporary_files_only(tmp_path):
    save(make_store(tmp_path), 1)
    torn = folder(tmp_path, 2)
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / ".trash-step-000000000").mkdir()
    (tmp_path / "status.json.77-0.tmp").write_text("")
    (tmp_path / "mine.tmp").write_text("")
    (tmp_path / "checkpoints" / "notes").mkdir()
    events = make_store(tmp_path).start()
    assert sorted(kinds(events)) == [("deleted", "step-000000000"), ("torn_removed", "step-000000002")]
    assert names(tmp_path) == ["notes", "step-000000001"]
    assert (tmp_path / "mine.tmp").exists()
    assert not (tmp_path / "status.json.77-0.tmp").exists()


def test_a_torn_save_does_not_exist_for_the_loader(tmp_path):
    save(make_store(tmp_path), 1)
    shutil.copytree(folder(tmp_path, 1), folder(tmp_path, 2))
    (folder(tmp_path, 2) / "COMMIT").unlink()
    result = make_store(tmp_path).load()
    assert result.checkpoint.manifest.step == 1
    assert result.events == ()


def test_a_run_that_starts_anew_moves_the_old_checkpoints_away_whole(tmp_path):
    old = make_store(tmp_path)
    save(old, 50)
    save(old, 100)
    result = save(make_store(tmp_path), 5)
    assert kinds(result.events) == [("set_aside", "checkpoints")]
    assert names(tmp_path) == ["step-000000005"]
    assert sorted(p.name for p in (tmp_path / "checkpoints-replaced").iterdir()) == ["step-000000050", "step-000000100"]


@pytest.mark.parametrize(
    "interval, minutes, step, waited_s, due",
    [
        (5, 0, 10, 0, True),
        (5, 0, 11, 9999, False),
        (0, 2, 11, 119, False),
        (0, 2, 11, 120, True),
        (5, 2, 11, 121, True),
        (0, 0, 10, 9999, False),
    ],
)
def test_cadence_is_by_steps_or_by_minutes_since_the_last_save(tmp_path, interval, minutes, step, waited_s, due):
    store = make_store(tmp_path, save_interval=interval, save_minutes=minutes)
    assert store.due(step, time.monotonic() + waited_s) is due


def test_a_step_that_was_saved_is_not_due_again_and_the_minutes_start_anew(tmp_path, monkeypatch):
    store = make_store(tmp_path, save_interval=5, save_minutes=1)
    start = time.monotonic()
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: start + 100)
    assert store.due(3)
    save(store, 5)
    assert not store.due(5)
    assert not store.due(6, start + 159)
    assert store.due(6, start + 161)


def kept(*entries):
    return [Kept(f"s{step}", size, score) for step, size, score in entries]


@pytest.mark.parametrize(
    "entries, keep, budget, gone",
    [
        pytest.param(kept((4, 1, None), (3, 1, None), (2, 1, None), (1, 1, None)), 3, 99, ["s1"], id="more-than-keep"),
        pytest.param(kept((3, 1, None), (2, 1, None), (1, 1, None)), 1, 99, ["s1"], id="two-always-stay"),
        pytest.param(kept((4, 1, 3.0), (3, 1, 2.0), (2, 1, 2.5), (1, 1, 1.0)), 2, 99, ["s2"], id="best-stays"),
        pytest.param(kept((4, 5, None), (3, 5, None), (2, 5, None), (1, 5, None)), 9, 10, ["s1", "s2"], id="budget"),
        pytest.param(kept((4, 5, 2.0), (3, 5, 2.0), (2, 5, 2.0), (1, 5, 1.0)), 9, 15, ["s2"], id="best-goes-last"),
        pytest.param(kept((4, 5, 2.0), (3, 5, 2.0), (2, 5, 1.0), (1, 5, 3.0)), 9, 10, ["s1", "s2"], id="best-may-go"),
        pytest.param(kept((2, 9, None), (1, 9, None)), 3, 1, [], id="budget-too-small-for-two"),
        pytest.param([], 3, 1, [], id="none"),
    ],
)
def test_retention_rule(entries, keep, budget, gone):
    assert [entry.name for entry in select_for_deletion(entries, keep, budget)] == gone


def test_retention_keeps_the_newest_and_the_best_on_disk(tmp_path):
    store = make_store(tmp_path, keep=2)
    for step, score in ((1, 5.0), (2, 1.0), (3, 4.0), (4, 3.0), (5, 2.0)):
        save(store, step, score)
    assert names(tmp_path) == ["step-000000002", "step-000000004", "step-000000005"]
    assert make_store(tmp_path).load().checkpoint.manifest.step == 5


def test_retention_respects_the_budget_and_says_when_it_cannot(tmp_path):
    size = save(make_store(tmp_path / "a"), 1).bytes
    store = make_store(tmp_path / "b", keep=9, budget_bytes=size - 1)
    for step in (1, 2, 3):
        result = save(store, step)
    assert names(tmp_path / "b") == ["step-000000002", "step-000000003"]
    assert kinds(result.events) == [("deleted", "step-000000001"), ("over_budget", "step-000000003")]


def test_nothing_is_deleted_when_a_newer_one_does_not_read_back(tmp_path, monkeypatch):
    store = make_store(tmp_path, keep=1)
    save(store, 1)
    save(store, 2)
    real = checkpoint.write_tensors

    def bad_disk(path, tensors):
        digest = real(path, tensors)
        flip(path)
        return digest

    monkeypatch.setattr(checkpoint, "write_tensors", bad_disk)
    result = save(store, 3)
    assert kinds(result.events) == [("quarantined", "step-000000003")]
    assert names(tmp_path) == ["step-000000001", "step-000000002"]
    monkeypatch.undo()
    save(store, 4)
    assert names(tmp_path) == ["step-000000002", "step-000000004"]


def test_a_checkpoint_is_read_back_once_per_process(tmp_path, monkeypatch):
    seen = []
    from sigma.train import retention

    real = retention.verify_checkpoint
    monkeypatch.setattr(retention, "verify_checkpoint", lambda f: (seen.append(f.name), real(f))[1])
    store = make_store(tmp_path, keep=1)
    for step in range(1, 6):
        save(store, step)
    assert sorted(seen) == [f"step-{step:09d}" for step in (2, 3, 4, 5)]


def test_a_deletion_that_fails_is_an_event_and_training_goes_on(tmp_path, monkeypatch):
    store = make_store(tmp_path, keep=1)
    save(store, 1)
    save(store, 2)

    def refuse(path):
        raise PermissionError("locked")

    monkeypatch.setattr(quarantine.shutil, "rmtree", refuse)
    result = save(store, 3)
    assert kinds(result.events) == [("delete_failed", "step-000000001")]
    monkeypatch.undo()
    assert names(tmp_path) == [".trash-step-000000001", "step-000000002", "step-000000003"]
    assert kinds(make_store(tmp_path).start()) == [("deleted", "step-000000001")]


# --- room on the disk ---


def test_preflight_asks_for_two_checkpoints_and_a_reserve_of_at_most_512_mib(tmp_path, monkeypatch):
    free = [0]
    monkeypatch.setattr(ballast.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, free[0]))
    for size, needed in ((10, 30), (2**30, 2 * 2**30 + 2**29)):
        free[0] = needed
        assert ballast.check_room(tmp_path, size) == needed
        free[0] = needed - 1
        with pytest.raises(DiskFullError, match="output-dir"):
            ballast.check_room(tmp_path, size)


def test_a_save_without_room_writes_nothing_keeps_the_earlier_one_and_gives_up_the_ballast(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    store.start()
    save(store, 1)
    assert 0 < (tmp_path / BALLAST_NAME).stat().st_size <= ballast.BALLAST_BYTES
    monkeypatch.setattr(ballast.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 100))
    with pytest.raises(DiskFullError):
        save(store, 2)
    assert names(tmp_path) == ["step-000000001"]
    assert not (tmp_path / BALLAST_NAME).exists()


def test_the_ballast_is_made_again_by_the_next_save(tmp_path):
    store = make_store(tmp_path)
    store.start()
    ballast.release_ballast(tmp_path)
    save(store, 1)
    assert (tmp_path / BALLAST_NAME).exists()
