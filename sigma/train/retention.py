"""Which checkpoints stay: the newest few and the best, within a disk budget, and never fewer than two proven ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sigma.train.quarantine import CheckpointEvent, delete_folder, quarantine
from sigma.train.verify_checkpoint import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    UnreadableCheckpointError,
    committed,
    read_manifest,
    verify_checkpoint,
)

PROVEN = 2
"""A checkpoint is deleted only when this many newer ones have been read back, so this many always stay."""


@dataclass(frozen=True)
class Kept:
    """A checkpoint as retention sees it; `score` is a validation loss (lower is better)."""

    name: str
    bytes: int
    score: float | None = None


def select_for_deletion(newest_first: Sequence[Kept], keep: int, budget_bytes: int) -> list[Kept]:
    """What to delete, oldest first: more than `keep`, then whatever exceeds the budget, the best checkpoint last.

    The two newest are never selected, even when `keep` is 1 or the budget is too small for them.
    """
    scored = [entry for entry in newest_first if entry.score is not None]
    best = min(scored, key=lambda entry: entry.score or 0.0) if scored else None
    oldest_first = list(reversed(newest_first[PROVEN:]))
    surplus = [entry for entry in newest_first[max(keep, PROVEN) :] if entry != best]
    total = sum(entry.bytes for entry in newest_first if entry not in surplus)
    for entry in sorted(oldest_first, key=lambda entry: entry == best):
        if total > budget_bytes and entry not in surplus:
            surplus.append(entry)
            total -= entry.bytes
    return [entry for entry in oldest_first if entry in surplus]


class Retention:
    """Applies the rule to a folder; remembers which checkpoints this process has already read back."""

    def __init__(self, run_dir: Path, checkpoints: Path, keep: int, budget_bytes: int) -> None:
        self.run_dir, self.checkpoints = run_dir, checkpoints
        self.keep, self.budget_bytes = keep, budget_bytes
        self._proven: set[str] = set()  # SHA-256 of the manifests of checkpoints that were read back whole

    def apply(self) -> list[CheckpointEvent]:
        """Delete what the rule selects. A damaged checkpoint goes to quarantine and nothing is deleted then.

        Failures are events, not errors: training can go on with an old checkpoint too many.
        """
        folder = self.checkpoints
        try:
            entries: list[Kept] = []
            folders = committed(self.checkpoints)
            for folder in folders:
                manifest, _ = read_manifest(folder)
                entries.append(Kept(folder.name, manifest.bytes, manifest.score))
            doomed = select_for_deletion(entries, self.keep, self.budget_bytes)
            for folder in folders[:PROVEN] if doomed else []:
                self._read_back(folder)
        except CorruptCheckpointError as error:
            return [quarantine(folder, self.run_dir, str(error))]
        except (OSError, IncompatibleCheckpointError, UnreadableCheckpointError) as error:
            return [CheckpointEvent("delete_failed", folder.name, str(error))]
        return [delete_folder(self.checkpoints / entry.name) for entry in doomed] + self._over_budget(entries, doomed)

    def _read_back(self, folder: Path) -> None:
        if read_manifest(folder)[1] not in self._proven:
            self._proven.add(verify_checkpoint(folder)[1])

    def _over_budget(self, entries: Sequence[Kept], doomed: Sequence[Kept]) -> list[CheckpointEvent]:
        total = sum(entry.bytes for entry in entries if entry not in doomed)
        if total <= self.budget_bytes:
            return []
        detail = f"checkpoints take {total} bytes and may take {self.budget_bytes}; raise --checkpoint-budget-gb"
        return [CheckpointEvent("over_budget", entries[0].name, detail)]
