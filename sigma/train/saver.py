"""What the loop calls: the state registry saved to and restored from the checkpoint store, events passed on."""

from __future__ import annotations

from collections.abc import Callable

from sigma.train.checkpoint import CheckpointStore, SaveResult
from sigma.train.quarantine import CheckpointEvent
from sigma.train.state import StateRegistry
from sigma.train.tensor_file import specs_of

MODEL_GROUP = "model"


class Saver:
    """Joins a store and a registry.

    `progress` returns (tokens seen, latest `val_bpb` or None); `on_event` receives what happened to checkpoints.
    """

    def __init__(
        self,
        store: CheckpointStore,
        registry: StateRegistry,
        progress: Callable[[], tuple[int, float | None]],
        on_event: Callable[[CheckpointEvent], None],
    ) -> None:
        self.store, self.registry = store, registry
        self._progress, self._on_event = progress, on_event

    def due(self, step: int, now: float) -> bool:
        """Whether `step` (just finished) is to be saved; `now` is `time.monotonic()`."""
        return self.store.due(step, now)

    def save(self, step: int) -> SaveResult:
        """Publish the whole registry. Raises as `CheckpointStore.save`."""
        tokens, score = self._progress()
        items, groups = self.registry.read(), self.registry.read_tensors()
        result = self.store.save(step, tokens=tokens, items=items, groups=groups, score=score)
        self._pass_on(result.events)
        return result

    def load_latest(self) -> int | None:
        """Clean up, restore the newest sound checkpoint, return its step; None when there is none.

        Raises as `CheckpointStore.load`, StateMismatchError; nothing is restored then.
        """
        self._pass_on(self.store.start())
        expected = {g: specs_of(t) for g, t in self.registry.read_tensors().items() if g == MODEL_GROUP}
        found = self.store.load(expected)
        self._pass_on(found.events)
        if found.checkpoint is None:
            return None
        self.registry.check(found.checkpoint.items)
        self.registry.write_tensors(found.checkpoint.groups())
        self.registry.write(found.checkpoint.items)
        return found.checkpoint.manifest.step

    def _pass_on(self, events: list[CheckpointEvent] | tuple[CheckpointEvent, ...]) -> None:
        for event in events:
            self._on_event(event)
