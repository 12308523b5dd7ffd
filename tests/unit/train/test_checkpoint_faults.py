"""Damage and interruptions of every kind: the loader never hands out anything but what was saved.

Bulk damage is done in place to one run folder with two checkpoints, and repaired after each load.
"""

import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from sigma.core import files, strict_json
from sigma.train import ballast
from sigma.train.ballast import BALLAST_NAME, DiskFullError
from sigma.train.checkpoint import CheckpointStore
from sigma.train.crash import write_crash_report

IDENTITY = {"model": {"d_model": 4}}
NAMES = ("model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json", "COMMIT")
FLIPS = 2000


def groups(step):
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, generator=generator)
    return {
        "model": {"embed": weight, "head": weight, "bias": torch.randn(5, generator=generator)},
        "optim": {"embed.exp_avg": torch.randn(4, 3, generator=generator), "embed.step": torch.tensor(float(step))},
    }


def save(store, step):
    return store.save(step, tokens=step, items={"step": step, "cursor": step * 7}, groups=groups(step))


def folder(run_dir, step):
    return run_dir / "checkpoints" / f"step-{step:09d}"


def load(run_dir):
    return CheckpointStore(run_dir, IDENTITY).load()


def assert_is_step(checkpoint, step):
    assert checkpoint.manifest.step == step
    assert checkpoint.items == {"step": step, "cursor": step * 7}
    loaded, expected = checkpoint.groups(), groups(step)
    assert all(torch.equal(loaded[g][n], t) for g in expected for n, t in expected[g].items())


class Victim:
    """A run with the checkpoints 1 and 2 of which 2 is damaged, judged and repaired again and again."""

    def __init__(self, run_dir):
        self.run_dir, self.newest = run_dir, folder(run_dir, 2)
        store = CheckpointStore(run_dir, IDENTITY)
        save(store, 1)
        save(store, 2)
        self.content = {name: (self.newest / name).read_bytes() for name in NAMES}

    def assert_detected(self, damaged):
        """`damaged` maps file names to contents; the older one must be loaded and the newest kept with its reason."""
        for name, data in damaged.items():
            (self.newest / name).write_bytes(data)
        result = load(self.run_dir)
        assert result.checkpoint.manifest.step == 1, damaged
        assert [event.kind for event in result.events] == ["quarantined"]
        kept = self.run_dir / "quarantine" / self.newest.name
        assert strict_json.load_file(kept / "reason.json")["reason"] == result.events[0].detail
        assert all((kept / name).read_bytes() == data for name, data in damaged.items())
        (kept / "reason.json").unlink()
        kept.rename(self.newest)
        for name in damaged:
            (self.newest / name).write_bytes(self.content[name])


@pytest.fixture
def ram(tmp_path):
    """A folder in memory where there is one: these tests write and force thousands of files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


@pytest.fixture
def victim(ram):
    return Victim(ram)


def assert_sound_again(victim):
    assert_is_step(load(victim.run_dir).checkpoint, 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_is_detected(victim, name):
    data = victim.content[name]
    for length in range(len(data)):
        victim.assert_detected({name: data[:length]})
    assert_sound_again(victim)


def test_two_thousand_random_bit_flips_over_all_files_are_detected(victim):
    chooser = random.Random(2)
    where = [(name, byte) for name in NAMES for byte in range(len(victim.content[name]))]
    for name, byte in chooser.choices(where, k=FLIPS):
        data = bytearray(victim.content[name])
        data[byte] ^= 1 << chooser.randrange(8)
        victim.assert_detected({name: bytes(data)})
    assert_sound_again(victim)


def test_every_bit_of_commit_and_many_bits_at_once_are_detected(victim):
    chooser = random.Random(3)
    for bit in range(8 * len(victim.content["COMMIT"])):
        data = bytearray(victim.content["COMMIT"])
        data[bit // 8] ^= 1 << (bit % 8)
        victim.assert_detected({"COMMIT": bytes(data)})
    for name in NAMES:
        data = bytearray(victim.content[name])
        for byte in chooser.sample(range(len(data)), 20):
            data[byte] ^= chooser.randrange(1, 256)
        victim.assert_detected({name: bytes(data)})
        victim.assert_detected({name: bytes(len(data))})
        victim.assert_detected({name: victim.content[name] + b"\n"})
    assert_sound_again(victim)


def test_every_swap_of_two_files_is_detected(victim):
    for a in NAMES:
        for b in NAMES:
            if a < b:
                victim.assert_detected({a: victim.content[b], b: victim.content[a]})
    assert_sound_again(victim)


def test_every_mixture_of_two_steps_is_detected(victim):
    other = {name: (folder(victim.run_dir, 1) / name).read_bytes() for name in NAMES}
    for mask in range(1, 2 ** len(NAMES)):  # the last one is a whole older checkpoint under a newer name
        victim.assert_detected({name: other[name] for bit, name in enumerate(NAMES) if mask >> bit & 1})
    assert_sound_again(victim)


# --- interruptions of one save ---

CALLS = ("open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir")


class Boundaries:
    """Counts the system calls that touch the disk, keeps what is there before each, and fails the chosen one."""

    def __init__(self, monkeypatch, run_dir, snapshots=None, fail_at=None, error=None):
        self.count, self.run_dir, self.snapshots = 0, run_dir, snapshots
        self.fail_at, self.error, self.inside, self.published = fail_at, error, False, False
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, real):
        def call(*args, **kwargs):
            if self.inside:
                return real(*args, **kwargs)
            if self.snapshots is not None:
                self.inside = True
                shutil.copytree(self.run_dir, self.snapshots / str(self.count))
                self.inside = False
            self.count += 1
            if self.count - 1 == self.fail_at:
                self.published = (folder(self.run_dir, 2) / "COMMIT").exists()
                raise self.error
            return real(*args, **kwargs)

        return call


def run_with_two_checkpoints(run_dir):
    """The save of step 2 will also delete step 0."""
    store = CheckpointStore(run_dir, IDENTITY, keep=1)
    store.start()
    (run_dir / BALLAST_NAME).write_bytes(b"ballast")
    save(store, 0)
    save(store, 1)
    return store


def boundaries_of_a_save(ram):
    with pytest.MonkeyPatch.context() as patch:
        store = run_with_two_checkpoints(ram / "count")
        counter = Boundaries(patch, ram / "count")
        save(store, 2)
    return counter.count


def test_a_kill_before_any_system_call_of_a_save_leaves_the_old_or_the_new_checkpoint(ram):
    store = run_with_two_checkpoints(ram / "run")
    with pytest.MonkeyPatch.context() as patch:
        boundaries = Boundaries(patch, ram / "run", snapshots=ram / "snapshots")
        save(store, 2)
    assert boundaries.count > 30
    found = []
    for number in range(boundaries.count):
        left = ram / "snapshots" / str(number)  # exactly what a kill at that moment leaves
        again = CheckpointStore(left, IDENTITY)
        half_written = folder(left, 2).exists() and not (folder(left, 2) / "COMMIT").exists()
        torn = [event.checkpoint for event in again.start() if event.kind == "torn_removed"]
        result = again.load()
        assert result.events == (), "a kill is no damage"
        found.append(result.checkpoint.manifest.step)
        assert_is_step(result.checkpoint, found[-1])
        assert torn == (["step-000000002"] if half_written else [])
        assert list(left.rglob("*.tmp")) == []
        save(again, 2)
        assert_is_step(load(left).checkpoint, 2)
        assert load(left).events == ()
    assert found == sorted(found), "once published, it stays"
    assert set(found) == {1, 2}


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("stop"), OSError(errno.EIO, "I/O error")], ids=repr
)
def test_an_exception_at_any_system_call_of_a_save_leaves_a_valid_checkpoint(ram, error):
    for number in range(boundaries_of_a_save(ram)):
        run_dir = ram / str(number)
        store = run_with_two_checkpoints(run_dir)
        with pytest.MonkeyPatch.context() as patch:
            boundaries = Boundaries(patch, run_dir, fail_at=number, error=error)
            with contextlib.suppress(KeyboardInterrupt, RuntimeError, OSError):
                save(store, 2)
                boundaries.published = True  # an error that the save could live with
        result = load(run_dir)
        assert result.events == ()
        assert_is_step(result.checkpoint, 2 if boundaries.published else 1)
        save(store, 3)
        assert_is_step(load(run_dir).checkpoint, 3)


def test_a_full_disk_at_any_write_keeps_the_earlier_checkpoint_and_releases_the_ballast(ram):
    full = OSError(errno.ENOSPC, "No space left on device")
    raised = 0
    for number in range(boundaries_of_a_save(ram)):
        run_dir = ram / str(number)
        store = run_with_two_checkpoints(run_dir)
        with pytest.MonkeyPatch.context() as patch:
            Boundaries(patch, run_dir, fail_at=number, error=full)
            try:
                save(store, 2)
            except DiskFullError:
                raised += 1
                assert not (run_dir / BALLAST_NAME).exists()
        result = load(run_dir)
        assert result.events == ()
        assert_is_step(result.checkpoint, result.checkpoint.manifest.step)
        assert list(run_dir.rglob("*.tmp")) == []
        save(store, 3)
        assert_is_step(load(run_dir).checkpoint, 3)
    assert raised > 15


def test_every_write_is_forced_to_the_disk_before_commit_is(tmp_path, monkeypatch):
    store = run_with_two_checkpoints(tmp_path)
    log = []
    paths = {}
    real_open, real_fsync, real_replace = os.open, os.fsync, os.replace

    def open_(path, *args, **kwargs):
        fd = real_open(path, *args, **kwargs)
        paths[fd] = Path(path)
        return fd

    monkeypatch.setattr(files.os, "open", open_)
    monkeypatch.setattr(files.os, "fsync", lambda fd: (log.append(paths[fd].name), real_fsync(fd))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (log.append(f"-> {Path(b).name}"), real_replace(a, b))[1])
    save(store, 2)
    published = log.index("-> COMMIT")
    before = log[:published]
    name = "step-000000002"
    assert before[:-1] == ["model.safetensors", "optim.safetensors", "state.json", "MANIFEST.json", name, "checkpoints"]
    assert before[-1].startswith("COMMIT.")
    assert log[published + 1] == name


# --- a disk that is really full ---

FILL = """
import sys, torch
from pathlib import Path
import sigma.train.checkpoint as module
from sigma.train.ballast import DiskFullError
from sigma.train.crash import kind_of, write_crash_report

run_dir = Path(sys.argv[1]) / "run"
store = module.CheckpointStore(run_dir, {})
store.start()

def save(step):
    store.save(step, tokens=step, items={}, groups={"model": {"w": torch.full((50_000,), float(step))}})

save(1)
save(2)
module.check_room = lambda *_: 0  # another program fills the disk just after the preflight
try:
    with open(run_dir.parent / "other", "wb", buffering=0) as other:
        while True:
            other.write(bytes(512))
except OSError:
    pass
try:
    save(3)
except DiskFullError as error:
    print(write_crash_report(error, run_dir=run_dir, kind=kind_of(error, "step")))
"""


def mount_small_disk(path):
    path.mkdir()
    if sys.platform != "linux" or not shutil.which("mount"):
        return False
    return subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], capture_output=True).returncode == 0


def test_a_small_disk_that_fills_up_keeps_the_earlier_checkpoints_and_takes_the_report(tmp_path):
    disk = tmp_path / "disk"
    if not mount_small_disk(disk):
        pytest.skip("may not mount a tmpfs here; the injected full disk above covers the same code")
    try:
        done = subprocess.run([sys.executable, "-c", FILL, disk], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        report = Path(done.stdout.strip())
        assert report.parent == disk / "run" / "errors"
        assert strict_json.load_file(report)["kind"] == "disk_full"
        found = CheckpointStore(disk / "run", {}).load()
        assert found.events == ()
        assert found.checkpoint.manifest.step == 2
        assert bool((found.checkpoint.groups()["model"]["w"] == 2).all())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_report_on_a_full_disk_costs_the_ballast(tmp_path, monkeypatch):
    ballast.reserve_ballast(tmp_path)
    real = os.write

    def full_until_released(fd, data):
        if (tmp_path / BALLAST_NAME).exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(files.os, "write", full_until_released)
    path = write_crash_report(RuntimeError("boom"), run_dir=tmp_path, kind="step")
    assert path.parent == tmp_path / "errors"
    assert strict_json.load_file(path)["exception"] == "boom"
