"""How far a run is, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass
class Progress:
    """How far the run is; saved in every checkpoint."""

    step: int = 0
    tokens: int = 0
    val_bpb: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        for name in asdict(self):
            setattr(self, name, state[name])


@dataclass(frozen=True)
class Outcome:
    """How `Trainer.run` ended. `exit_code` is the program's: 0, 130 for Ctrl+C, 143 for another signal."""

    state: Literal["finished", "already_finished", "interrupted"]
    step: int
    run_dir: Path
    exit_code: int = 0
    signal_name: str | None = None
