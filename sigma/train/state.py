"""The inventory of everything that must survive a kill: named JSON items and named groups of tensors.

`state.json` holds exactly the items, `<group>.safetensors` exactly the tensors of a group. Nothing else is saved.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigma.core.errors import SigmaError

Getter = Callable[[], Any]
Setter = Callable[[Any], Any]
Check = Callable[[Any], None]
TensorGetter = Callable[[], dict[str, Tensor]]
TensorSetter = Callable[[Mapping[str, Tensor]], Any]


class StateMismatchError(SigmaError):
    """A checkpoint and this program name different things; the message lists the difference."""


class StateRegistry:
    """Named state. `get` must return a copy or a value that is written before the next step changes it."""

    def __init__(self) -> None:
        self._items: dict[str, tuple[Getter, Setter]] = {}
        self._checks: dict[str, Check] = {}
        self._groups: dict[str, tuple[TensorGetter, TensorSetter]] = {}

    def register(self, name: str, get: Getter, set: Setter, check: Check | None = None) -> None:
        """Add one JSON item; `check` raises for one that must not be restored. ValueError on a name used twice."""
        self._refuse_duplicate(name)
        self._items[name] = (get, set)
        if check is not None:
            self._checks[name] = check

    def register_tensors(self, name: str, get: TensorGetter, set: TensorSetter) -> None:
        """Add one group of tensors, saved as `<name>.safetensors`. Raises ValueError on a name used twice."""
        self._refuse_duplicate(name)
        self._groups[name] = (get, set)

    def _refuse_duplicate(self, name: str) -> None:
        if name in self._items or name in self._groups:
            raise ValueError(f"state {name!r} is registered twice")

    def names(self) -> list[str]:
        """Names of the JSON items, in order of registration."""
        return list(self._items)

    def group_names(self) -> list[str]:
        """Names of the tensor groups, in order of registration."""
        return list(self._groups)

    def read(self) -> dict[str, Any]:
        """The value of every JSON item."""
        return {name: get() for name, (get, _) in self._items.items()}

    def read_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of every group (not copied)."""
        return {name: get() for name, (get, _) in self._groups.items()}

    def check(self, items: Mapping[str, Any]) -> None:
        """Raise StateMismatchError when the names differ, or what the check of an item raises; changes nothing."""
        refuse_different_names("state items", items, self._items)
        for name, check in self._checks.items():
            check(items[name])

    def write(self, items: Mapping[str, Any]) -> None:
        """Restore every JSON item. Raises StateMismatchError, before changing anything, when the names differ."""
        refuse_different_names("state items", items, self._items)
        for name, (_, set_item) in self._items.items():
            set_item(items[name])

    def write_tensors(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore every tensor group. Raises StateMismatchError, before changing anything, when the names differ."""
        refuse_different_names("tensor groups", groups, self._groups)
        for name, (_, set_group) in self._groups.items():
            set_group(groups[name])


def refuse_different_names(what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise StateMismatchError when the two sets of names differ."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        raise StateMismatchError(
            f"the checkpoint does not fit this program: its {what} lack {shorten(missing)} and have unknown"
            f" {shorten(unknown)}; continue it with the version and configuration that wrote it, or use another"
            " --output-dir"
        )


def shorten(names: list[str], most: int = 5) -> str:
    """`a, b, c` with a count of the rest, or `nothing`."""
    if not names:
        return "nothing"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def read_rng() -> dict[str, Any]:
    """The global generators of torch (CPU and every CUDA device), Python and numpy, as JSON.

    SIGMA draws from its own seeded generators; libraries that it calls may still use the global ones.
    """
    version, keys, gauss = random.getstate()
    kind, np_keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(state) for state in cuda],
        "python": [version, list(keys), gauss],
        "numpy": [str(kind), np.asarray(np_keys).tolist(), int(position), int(has_gauss), float(cached)],
    }


def write_rng(state: Mapping[str, Any]) -> None:
    """Restore what `read_rng` returned. CUDA states are ignored where their device is missing."""
    torch.set_rng_state(_decode(state["torch"]))
    for index, encoded in enumerate(state["cuda"]):
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(_decode(encoded), index)
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, np_keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(np_keys, dtype=np.uint32), position, has_gauss, cached))


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
