"""A window: some consecutive blocks of a collection, read together and shuffled together.

The files of an epoch come in a counter-based order, the records of a window in another. Both are functions of the
seed and of where the window begins, so a position needs no buffer: whoever comes back reads the window again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from sigma.data.corpus import keyed_order
from sigma.data.record import Block, Collection, Damaged, Missing, Record, Unavailable


@dataclass(frozen=True)
class Place:
    """The beginning of a block: the `file`-th of the epoch's order, and the position in it."""

    epoch: int = 0
    file: int = 0
    position: int = 0


@dataclass(frozen=True)
class WindowSize:
    """A window ends after the block that reaches one of these (and never without a record)."""

    records: int = 4096
    characters: int = 16 << 20
    blocks: int = 16


Hole = tuple[str, int, int | None]  # file, position, resume: a block that was found damaged


@dataclass
class Window:
    """Shuffled records and what was left out on the way; `after` is where the next window begins."""

    start: Place
    after: Place
    pin: str | None
    records: list[Record] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)


def read_window(
    collection: Collection,
    seed: int,
    start: Place,
    size: WindowSize,
    holes: frozenset[Hole] = frozenset(),
    goes_on: Callable[[], bool] = lambda: True,
    is_lost: Callable[[str], bool] = lambda path: False,
    known: Mapping[tuple[str, int], Damaged] = MappingProxyType({}),
) -> Window:
    """Read the window that begins at `start`. `holes` are known to be damaged and are not read again; `is_lost`
    says whether a file that is missing is given up (and counts as damaged) or waited for. The blocks (file, position)
    of `known`, which an earlier process found damaged, are not read either, but count as found now.

    Raises Unavailable, also when `goes_on` says no, and when a whole pass over all files gives no record.
    """
    files = collection.files()
    window = Window(start, start, collection.pin)
    blocks = characters = 0
    while True:
        if not goes_on():
            raise Unavailable(collection.name, "closed")
        place = window.after
        if place == start or place == Place(place.epoch):
            order = keyed_order(len(files), f"files {collection.name} {seed} {place.epoch}")
        file = int(order[place.file])
        block = _read_block(collection, files[file].path, file, place.position, holes, window, is_lost, known)
        window.records += block.records
        window.skipped += block.skipped
        window.places += block.places
        window.after = _following(place, block.next, len(files))
        blocks += 1
        characters += sum(len(record.text) for record in block.records)
        full = len(window.records) >= size.records or characters >= size.characters or blocks >= size.blocks
        if window.records and (full or window.after.epoch != place.epoch):
            break
        if window.after.epoch > start.epoch + 1:
            raise Unavailable(collection.name, f"no record in any of its {len(files)} files")
    key = f"window {collection.name} {seed} {start.epoch} {start.file} {start.position}"
    window.records = [window.records[i] for i in keyed_order(len(window.records), key)]
    return window


def _following(place: Place, position: int | None, files: int) -> Place:
    """The place of the next block: in this file, in the next file, or at the beginning of the next epoch."""
    if position is not None:
        return replace(place, position=position)
    if place.file + 1 < files:
        return Place(place.epoch, place.file + 1)
    return Place(place.epoch + 1)


def _read_block(
    collection: Collection,
    path: str,
    file: int,
    position: int,
    holes: frozenset[Hole],
    window: Window,
    is_lost: Callable[[str], bool],
    known: Mapping[tuple[str, int], Damaged],
) -> Block:
    """One block; a damaged one is left out."""
    for hole_path, hole_position, resume in holes:
        if (hole_path, hole_position) == (path, position):
            return Block([], resume)
    block = known.get((path, position)) or _read_twice(collection, file, path, position, is_lost)
    if isinstance(block, Block):
        return block
    if block.resume is not None and block.resume <= position:
        raise ValueError(f"{block}; reading must go on behind it, not at {block.resume}") from block
    window.damaged.append(block)
    window.skipped["damaged"] += 1
    return Block([], block.resume)


def _read_twice(
    collection: Collection, file: int, path: str, position: int, is_lost: Callable[[str], bool]
) -> Block | Damaged:
    """A block is read twice before its damage is believed: bytes can be lost on the way."""
    try:
        return collection.read(file, position)
    except Damaged:
        pass
    except Missing as missing:
        return _lost(missing, path, position, is_lost)
    try:
        return collection.read(file, position)
    except Damaged as damage:
        return damage
    except Missing as missing:
        return _lost(missing, path, position, is_lost)


def _lost(missing: Missing, path: str, position: int, is_lost: Callable[[str], bool]) -> Damaged:
    """A missing file as damage, once it is given up; until then it is unavailable."""
    if not is_lost(path):
        raise missing
    return Damaged(path, position, missing.reason)
