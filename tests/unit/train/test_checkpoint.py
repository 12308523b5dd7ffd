import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sigma.config.data import DataSection
from sigma.config.model import ModelSection
from sigma.config.root import RunConfig
from sigma.config.run import RunSection
from sigma.config.train import TrainSection
from sigma.core.files import sha256_file
from sigma.core.strict_json import StrictJsonError
from sigma.train import ballast, checkpoint, quarantine, verify_checkpoint
from sigma.train.ballast import BALLAST_NAME, DiskFullError
from sigma.train.checkpoint import CheckpointStore
from sigma.train.compatibility import identity_of
from sigma.train.retention import Kept, select_for_deletion
from sigma.train.saver import Saver
from sigma.train.state import StateRegistry
from sigma.train.tensor_file import TensorFileError, read_specs, read_tensors, specs_of, write_tensors
from sigma.train.verify_checkpoint import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    UnreadableCheckpointError,
    find_newest_valid,
)
from sigma.train.verify_checkpoint import verify_checkpoint as verify

IDENTITY = {"model": {"d_model": 8}, "train": {"optimizer": "adamw"}}


def groups(step):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 5, generator=generator)
    model = {
        "embed.weight": weight,
        "head.weight": weight,
        "scale": torch.tensor(1.5 + step),
        "none": torch.zeros(0, 4),
    }
    optim = {
        "embed.weight.exp_avg": torch.randn(3, 5, generator=generator).to(torch.bfloat16),
        "embed.weight.step": torch.tensor(step, dtype=torch.int64),
        "mask": torch.tensor([True, False, True]),
        "strided": torch.arange(6.0).reshape(2, 3).t(),
    }
    return {"model": model, "optim": optim}


def items(step):
    return {"step": step, "cursor": {"shard": 1, "row": 7 * step}, "ema": 0.1 * step, "text": "é"}


def save(store, step, score=None):
    return store.save(step, tokens=100 * step, items=items(step), groups=groups(step), score=score)


def make_store(run_dir, **options):
    return CheckpointStore(run_dir, IDENTITY, **options)


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def folder(run_dir, step):
    return run_dir / "checkpoints" / f"step-{step:09d}"


def kinds(events):
    return [(event.kind, event.checkpoint) for event in events]


def flip(path, offset=-1):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


# --- saving and loading ---


def test_what_was_saved_comes_back_exactly(tmp_path):
    save(make_store(tmp_path), 12)
    found = make_store(tmp_path).load().checkpoint
    assert found.manifest.step == 12
    assert found.manifest.tokens == 1200
    assert found.items == items(12)
    loaded = found.groups()
    for group, tensors in groups(12).items():
        assert loaded[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[group][name].dtype == tensor.dtype
            assert torch.equal(loaded[group][name], tensor), name


def test_layout_is_the_documented_one_and_the_library_reads_the_files(tmp_path):
    save(make_store(tmp_path), 1200)
    assert sorted(p.name for p in folder(tmp_path, 1200).iterdir()) == [
        "COMMIT",
        "MANIFEST.json",
        "model.safetensors",
        "optim.safetensors",
        "state.json",
    ]
    assert torch.equal(load_file(folder(tmp_path, 1200) / "model.safetensors")["scale"], torch.tensor(1201.5))
    assert json.loads((tmp_path / "LATEST.json").read_text()) == {"checkpoint": "step-000001200"}


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = groups(1)["model"]
    write_tensors(path, tensors)
    assert len(load_file(path)) == len(tensors) - 1
    loaded = read_tensors(path)
    assert loaded["head.weight"] is loaded["embed.weight"]
    assert read_specs(path) == specs_of(tensors)


def test_overlapping_views_that_are_not_equal_are_stored_apart(tmp_path):
    base = torch.arange(6.0)
    tensors = {"all": base, "part": base[:3], "reshaped": base.reshape(2, 3)}
    write_tensors(tmp_path / "m.safetensors", tensors)
    loaded = read_tensors(tmp_path / "m.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_equal_state_gives_equal_bytes_whatever_the_order_of_names(tmp_path):
    tensors = groups(3)["optim"]
    first = write_tensors(tmp_path / "a", tensors)
    assert first == write_tensors(tmp_path / "b", dict(reversed(tensors.items()))) == sha256_file(tmp_path / "a")


def test_loaded_tensors_own_their_memory_and_the_file_can_be_deleted(tmp_path):
    write_tensors(tmp_path / "a", {"x": torch.ones(1000), "y": torch.ones(3, dtype=torch.uint8)})
    loaded = read_tensors(tmp_path / "a")
    with open(tmp_path / "a", "r+b") as file:
        file.write(b"\xff" * 2000)
    assert all(bool((tensor == 1).all()) for tensor in loaded.values())


def test_a_dtype_that_safetensors_lacks_is_named(tmp_path):
    with pytest.raises(TensorFileError, match=r"'z' has dtype torch\.complex128"):
        write_tensors(tmp_path / "a", {"z": torch.zeros(2, dtype=torch.complex128)})


@pytest.mark.parametrize("length", [0, 7, 8, 40, -1])
def test_a_cut_tensor_file_is_refused_by_its_header(tmp_path, length):
    write_tensors(tmp_path / "a", groups(1)["model"])
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:length])
    with pytest.raises(TensorFileError):
        read_specs(tmp_path / "a")


def test_saving_draws_no_random_number_and_changes_no_tensor(tmp_path):
    state = groups(5)
    copies = {g: {n: t.clone() for n, t in tensors.items()} for g, tensors in state.items()}
    before = torch.get_rng_state()
    make_store(tmp_path).save(5, tokens=1, items={}, groups=state)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(state[g][n], copies[g][n]) for g in state for n in state[g])


def test_a_number_that_would_not_come_back_stops_the_save_and_leaves_the_earlier_one(tmp_path):
    store = make_store(tmp_path)
    save(store, 1)
    with pytest.raises(StrictJsonError, match=r"\$\.ema: nan"):
        store.save(2, tokens=1, items={"ema": float("nan")}, groups=groups(2))
    assert names(tmp_path) == ["step-000000001"]


def test_manifests_form_a_chain_through_saves_and_resumes(tmp_path):
    store = make_store(tmp_path)
    save(store, 1)
    save(store, 2)
    again = make_store(tmp_path)
    again.load()
    save(again, 3)
    digests = [verify(folder(tmp_path, step))[1] for step in (1, 2, 3)]
    parents = [verify(folder(tmp_path, step))[0].parent for step in (1, 2, 3)]
    assert parents == [None, digests[0], digests[1]]


def test_the_step_that_is_already_saved_is_not_written_again(tmp_path):
    store = make_store(tmp_path)
    save(store, 1)
    before = (folder(tmp_path, 1) / "COMMIT").stat().st_mtime_ns
    assert save(store, 1).bytes == 0
    again = make_store(tmp_path)
    again.load()
    assert save(again, 1).bytes == 0
    assert (folder(tmp_path, 1) / "COMMIT").stat().st_mtime_ns == before


def test_an_empty_run_folder_has_no_checkpoint(tmp_path):
    store = make_store(tmp_path / "new" / "run")
    assert store.start() == []
    assert store.load() == checkpoint.LoadResult(None, ())


# --- which one is loaded ---


def test_the_newest_step_is_loaded_whatever_the_hint_says(tmp_path):
    store = make_store(tmp_path)
    for step in (9, 10, 100):
        save(store, step)
    (tmp_path / "LATEST.json").write_text('{"checkpoint": "step-000000009"}')
    assert make_store(tmp_path).load().checkpoint.manifest.step == 100


@pytest.mark.parametrize(
    "damage, reason",
    [
        pytest.param(lambda f: flip(f / "model.safetensors"), "model.safetensors does not have the SHA-256", id="bit"),
        pytest.param(lambda f: flip(f / "MANIFEST.json"), "COMMIT does not hold", id="manifest-bit"),
        pytest.param(lambda f: flip(f / "COMMIT", 3), "COMMIT does not hold", id="commit-bit"),
        pytest.param(lambda f: (f / "COMMIT").write_bytes(b""), "COMMIT does not hold", id="commit-empty"),
        pytest.param(lambda f: flip(f / "COMMIT", 64), "COMMIT does not hold", id="commit-newline"),
        pytest.param(lambda f: (f / "COMMIT").write_bytes(b"x" * 99), "COMMIT is longer", id="commit-long"),
        pytest.param(lambda f: (f / "state.json").unlink(), "missing files: state.json", id="missing"),
        pytest.param(lambda f: (f / "MANIFEST.json").unlink(), "MANIFEST.json is missing", id="no-manifest"),
        pytest.param(lambda f: (f / "more.json").write_text("{}"), "does not name: more.json", id="extra"),
        pytest.param(lambda f: (f / "state.json").write_text("{}"), "state.json has 2 bytes", id="size"),
    ],
)
def test_damage_sends_the_folder_to_quarantine_and_the_older_one_is_used(tmp_path, damage, reason):
    store = make_store(tmp_path)
    save(store, 1)
    save(store, 2)
    damage(folder(tmp_path, 2))
    left = {p.name: p.read_bytes() for p in folder(tmp_path, 2).iterdir()}
    result = make_store(tmp_path).load()
    assert result.checkpoint.manifest.step == 1
    assert kinds(result.events) == [("quarantined", "step-000000002")]
    kept = tmp_path / "quarantine" / "step-000000002"
    note = json.loads((kept / "reason.json").read_text())
    assert reason in note["reason"]
    assert note["checkpoint"] == "step-000000002"
    assert {p.name: p.read_bytes() for p in kept.iterdir() if p.name != "reason.json"} == left
    assert names(tmp_path) == ["step-000000001"]


def test_a_second_damaged_checkpoint_of_the_same_step_gets_its_own_place(tmp_path):
    for _ in range(2):
        store = make_store(tmp_path)
        store.load()
        save(store, 1)
        flip(folder(tmp_path, 1) / "state.json")
        assert make_store(tmp_path).load().checkpoint is None
    assert sorted(p.name for p in (tmp_path / "quarantine").iterdir()) == ["step-000000001", "step-000000001-2"]


def test_a_folder_moved_to_another_step_is_damage(tmp_path):
    store = make_store(tmp_path)
    save(store, 1)
    shutil.copytree(folder(tmp_path, 1), folder(tmp_path, 7))
    result = make_store(tmp_path).load()
    assert result.checkpoint.manifest.step == 1
    assert "is of step 1" in result.events[0].detail


def test_a_symlink_in_place_of_a_file_is_damage(tmp_path):
    save(make_store(tmp_path), 1)
    target = folder(tmp_path, 1) / "state.json"
    target.rename(tmp_path / "elsewhere.json")
    target.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CorruptCheckpointError, match="not a plain file"):
        verify(folder(tmp_path, 1))


def test_files_that_file_managers_leave_are_no_damage(tmp_path):
    save(make_store(tmp_path), 1)
    (folder(tmp_path, 1) / "desktop.ini").write_text("[.ShellClassInfo]")
    assert verify(folder(tmp_path, 1))[0].step == 1


@pytest.mark.skipif(os.name == "nt", reason="patches a POSIX error")
def test_a_file_that_the_system_refuses_to_read_is_an_error_and_stays(tmp_path, monkeypatch):
    save(make_store(tmp_path), 1)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(verify_checkpoint, "sha256_file", refuse)
    with pytest.raises(UnreadableCheckpointError, match="check the permissions"):
        make_store(tmp_path).load()
    assert names(tmp_path) == ["step-000000001"]


def test_quarantine_that_cannot_move_says_so_and_the_older_one_is_used(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    save(store, 1)
    save(store, 2)
    flip(folder(tmp_path, 2) / "state.json")

    def refuse(*_):
        raise PermissionError("locked")

    monkeypatch.setattr(quarantine, "replace", refuse)
    result = make_store(tmp_path).load()
    assert result.checkpoint.manifest.step == 1
    assert kinds(result.events) == [("quarantine_failed", "step-000000002")]


def test_a_reader_finds_the_newest_sound_one_and_moves_nothing(tmp_path):
    store = make_store(tmp_path)
    save(store, 1)
    save(store, 2)
    flip(folder(tmp_path, 2) / "state.json")
    assert find_newest_valid(tmp_path) == folder(tmp_path, 1)
    assert names(tmp_path) == ["step-000000001", "step-000000002"]
    assert find_newest_valid(tmp_path / "other") is None


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


# --- the registry ---


class Run:
    def __init__(self, step=0):
        self.model = groups(step)["model"]
        self.step = step
        self.events = []
        self.registry = StateRegistry()
        self.registry.register("progress", lambda: {"step": self.step}, lambda d: setattr(self, "step", d["step"]))
        self.registry.register_tensors("model", lambda: self.model, lambda d: setattr(self, "model", dict(d)))

    def saver(self, run_dir: Path, **options):
        store = CheckpointStore(run_dir, IDENTITY, **options)
        return Saver(store, self.registry, lambda: (self.step * 10, None), self.events.append)


def test_the_saver_restores_the_registry_and_passes_events_on(tmp_path):
    first = Run(3)
    first.saver(tmp_path).save(3)
    first.step = 4
    saver = first.saver(tmp_path)
    saver.load_latest()
    assert first.step == 3
    first.step = 4
    saver.save(4)
    flip(folder(tmp_path, 4) / "model.safetensors")
    second = Run(0)
    assert second.saver(tmp_path).load_latest() == 3
    assert second.step == 3
    assert torch.equal(second.model["embed.weight"], groups(3)["model"]["embed.weight"])
    assert kinds(second.events) == [("quarantined", "step-000000004")]
    assert Run(0).saver(tmp_path / "other").load_latest() is None


def test_the_saver_refuses_a_model_of_another_shape_before_it_changes_anything(tmp_path):
    Run(3).saver(tmp_path).save(3)
    other = Run(0)
    other.model["scale"] = torch.zeros(7)
    with pytest.raises(IncompatibleCheckpointError, match="scale"):
        other.saver(tmp_path).load_latest()
    assert other.step == 0
