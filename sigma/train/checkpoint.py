"""CheckpointStore: saves that a kill at any moment leaves either complete or invisible, and the loader for them.

`checkpoints/step-000001200/` gets its tensors and `state.json`, then MANIFEST.json with the hash of each, then COMMIT
with the hash of the manifest. Every file is forced to the disk before the next is begun. Only COMMIT, an atomic rename
of a file, makes the folder exist for a reader; folders are never renamed into place, which Windows refuses when a
scanner looks inside. Nothing here draws random numbers or changes a tensor, so that saving never changes training.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sigma.core import strict_json
from sigma.core.files import fsync_dir, write_atomic, write_durable
from sigma.core.version import VERSION
from sigma.train.ballast import DiskFullError, check_room, is_disk_full, release_ballast, reserve_ballast
from sigma.train.compatibility import check_identity, check_specs, identity_hash
from sigma.train.quarantine import CheckpointEvent, clean_orphans, quarantine, set_aside
from sigma.train.retention import Retention
from sigma.train.tensor_file import Spec, read_specs, read_tensors, write_tensors
from sigma.train.verify_checkpoint import (
    CHECKPOINTS_DIR,
    COMMIT,
    MANIFEST,
    SCHEMA,
    STATE,
    TENSORS_SUFFIX,
    CorruptCheckpointError,
    FileEntry,
    Manifest,
    committed,
    folder_name,
    verify_checkpoint,
)

LATEST = "LATEST.json"
Groups = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: JSON items, and tensor groups that are read when asked for."""

    folder: Path
    manifest: Manifest
    items: dict[str, Any]

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor group by name, on the CPU, in memory of its own; tied weights are one tensor."""
        names = [name for name in self.manifest.files if name.endswith(TENSORS_SUFFIX)]
        return {name.removesuffix(TENSORS_SUFFIX): read_tensors(self.folder / name) for name in names}


@dataclass(frozen=True)
class LoadResult:
    """The newest sound checkpoint, if any, and what had to be done to find it."""

    checkpoint: Checkpoint | None
    events: tuple[CheckpointEvent, ...]


@dataclass(frozen=True)
class SaveResult:
    """A published checkpoint. `bytes` is 0 when this step had already been saved."""

    folder: Path
    bytes: int
    seconds: float
    events: tuple[CheckpointEvent, ...]


class CheckpointStore:
    """The checkpoints of one run folder. Hold the run's lock while using it.

    `identity` is what a checkpoint must share to be continued (`compatibility.identity_of`). `keep` and `budget_bytes`
    limit how many stay (never fewer than two). `save_interval` steps and `save_minutes` set the cadence; 0 is off.
    """

    def __init__(
        self,
        run_dir: Path,
        identity: Mapping[str, Any],
        *,
        keep: int = 3,
        budget_bytes: int = 50 * 10**9,
        save_interval: int = 0,
        save_minutes: float = 0.0,
    ) -> None:
        self.run_dir = run_dir
        self.checkpoints = run_dir / CHECKPOINTS_DIR
        self.identity = dict(identity)
        self.save_interval, self.save_minutes = save_interval, save_minutes
        self._retention = Retention(run_dir, self.checkpoints, keep, budget_bytes)
        self._history_known = False  # whether the folders in `checkpoints` are this run's own past
        self._parent: str | None = None
        self._saved_step: int | None = None
        self._saved_at = time.monotonic()

    def start(self) -> list[CheckpointEvent]:
        """Prepare the folder: remove what a killed process left, make the ballast. Call it once, before `load`."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        events = clean_orphans(self.run_dir, self.checkpoints)
        reserve_ballast(self.run_dir)
        return events

    def set_aside(self) -> Path | None:
        """For a run that starts anew: move the checkpoints of the earlier one away; where they went, or None."""
        return set_aside(self.checkpoints)

    def due(self, step: int, now: float | None = None) -> bool:
        """Whether `step` (just finished) is to be saved; `now` is `time.monotonic()`."""
        if step == self._saved_step:
            return False
        by_steps = self.save_interval > 0 and step % self.save_interval == 0
        waited_s = (time.monotonic() if now is None else now) - self._saved_at
        return by_steps or (self.save_minutes > 0 and waited_s >= 60 * self.save_minutes)

    def load(self, expected: Mapping[str, Mapping[str, Spec]] | None = None) -> LoadResult:
        """The newest checkpoint that verifies; damaged ones go to quarantine and the next older is tried.

        `expected` gives, for some groups, the tensors that the program will restore (`tensor_file.specs_of`); headers
        are compared with it before anything is allocated. Raises IncompatibleCheckpointError with the differences,
        UnreadableCheckpointError; both leave that checkpoint where it is.
        """
        events: list[CheckpointEvent] = []
        for folder in committed(self.checkpoints):
            try:
                manifest, digest = verify_checkpoint(folder)
            except CorruptCheckpointError as error:
                events.append(quarantine(folder, self.run_dir, str(error)))
                continue
            check_identity(folder, manifest, self.identity)
            for group, specs in (expected or {}).items():
                name = group + TENSORS_SUFFIX
                check_specs(folder, group, read_specs(folder / name) if name in manifest.files else {}, specs)
            self._history_known, self._parent, self._saved_step = True, digest, manifest.step
            items = strict_json.load_file(folder / STATE)
            return LoadResult(Checkpoint(folder, manifest, items), tuple(events))
        return LoadResult(None, tuple(events))

    def save(
        self, step: int, *, tokens: int, items: Mapping[str, Any], groups: Groups, score: float | None = None
    ) -> SaveResult:
        """Publish the state after `step`, then apply retention. `score` (lower is better) protects the best one.

        The first save of a run that loaded nothing moves the checkpoints of an earlier run to `checkpoints-replaced`.
        Raises DiskFullError (the ballast is then released), OSError, StrictJsonError (an item that would not come back
        exactly), TensorFileError; the earlier checkpoints stay valid in every case.
        """
        began = time.monotonic()
        folder = self.checkpoints / folder_name(step)
        if step == self._saved_step:
            return SaveResult(folder, 0, 0.0, ())
        state = strict_json.dumps(items, nonfinite="error").encode()
        events: list[CheckpointEvent] = []
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            check_room(self.checkpoints, len(state) + _bytes_of(groups))
            events += self._clear(folder)
            manifest = self._write(folder, step, tokens, state, groups, score)
        except DiskFullError:
            release_ballast(self.run_dir)
            raise
        except OSError as error:
            if not is_disk_full(error):
                raise
            release_ballast(self.run_dir)
            raise self._disk_full(error) from error
        self._saved_step, self._saved_at = step, time.monotonic()
        events += self._finish(folder)
        return SaveResult(folder, manifest.bytes, time.monotonic() - began, tuple(events))

    def _clear(self, folder: Path) -> list[CheckpointEvent]:
        """Make the name free: what another run left is kept apart, a torn save of this process goes."""
        if not self._history_known:
            moved = self.set_aside()
            self.checkpoints.mkdir(exist_ok=True)
            self._history_known = True
            return [CheckpointEvent("set_aside", self.checkpoints.name, f"moved to {moved.name}")] if moved else []
        if (folder / COMMIT).exists():
            return [quarantine(folder, self.run_dir, "another checkpoint of the same step takes its place")]
        if folder.exists():
            shutil.rmtree(folder)
        return []

    def _write(
        self, folder: Path, step: int, tokens: int, state: bytes, groups: Groups, score: float | None
    ) -> Manifest:
        folder.mkdir()
        try:
            hashes = {g + TENSORS_SUFFIX: write_tensors(folder / (g + TENSORS_SUFFIX), t) for g, t in groups.items()}
            hashes[STATE] = write_durable(folder / STATE, state)
            files = {name: FileEntry((folder / name).stat().st_size, digest) for name, digest in hashes.items()}
            manifest = self._manifest(step, tokens, score, files)
            self._parent = self._publish(folder, manifest)
            return manifest
        except BaseException:
            if not (folder / COMMIT).exists():  # a failure after COMMIT leaves a complete checkpoint
                shutil.rmtree(folder, ignore_errors=True)  # what stays is removed at the next start
            raise

    def _manifest(self, step: int, tokens: int, score: float | None, files: Mapping[str, FileEntry]) -> Manifest:
        return Manifest(
            schema=SCHEMA,
            step=step,
            tokens=tokens,
            parent=self._parent,
            identity=self.identity,
            identity_sha256=identity_hash(self.identity),
            program=VERSION,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            score=score,
            files=files,
        )

    def _publish(self, folder: Path, manifest: Manifest) -> str:
        text = strict_json.dumps(dataclasses.asdict(manifest), indent=1)
        digest = write_durable(folder / MANIFEST, text.encode())
        fsync_dir(folder)
        fsync_dir(self.checkpoints)  # the folder's own name must survive a power cut before COMMIT promises it
        write_atomic(folder / COMMIT, f"{digest}\n".encode())
        return digest

    def _finish(self, folder: Path) -> list[CheckpointEvent]:
        events: list[CheckpointEvent] = []
        try:
            write_atomic(self.run_dir / LATEST, strict_json.dumps({"checkpoint": folder.name}).encode())
        except OSError as error:  # a hint for people and tools; the loader does not read it
            events.append(CheckpointEvent("hint_failed", folder.name, str(error)))
        events += self._retention.apply()
        reserve_ballast(self.run_dir)
        return events

    def _disk_full(self, error: OSError) -> DiskFullError:
        return DiskFullError(
            f"the disk of {self.run_dir} is full ({error}); the checkpoints before this one are intact. Free some room,"
            " or lower --max-checkpoints or --checkpoint-budget-gb, then start again to continue"
        )


def _bytes_of(groups: Groups) -> int:
    return sum(t.numel() * t.element_size() for tensors in groups.values() for t in tensors.values())
