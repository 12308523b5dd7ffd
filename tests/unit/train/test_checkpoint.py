import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sigma.core.files import sha256_file
from sigma.core.strict_json import StrictJsonError
from sigma.train import checkpoint, quarantine, verify_checkpoint
from sigma.train.checkpoint import CheckpointStore
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
from tests.unit.train.checkpoint_cases import IDENTITY, flip, folder, groups, items, kinds, make_store, names, save

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
