"""Whose turn it is: groups of sources share the tokens, the sources of a group share what is the group's.

The sources of a group stand in for each other. What another one gives is counted for the source whose turn it was, so
the order of turns does not depend on who answered, and with all of them absent the order is that of a group which has
nothing but its standby.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sigma.data.feed import Feed
from sigma.data.mix import ShareMixer


@dataclass(frozen=True)
class Group:
    """Feeds and their shares within the group, which has `share` of all tokens.

    `standby` is a local feed that gives when no other one can. A group without it has one local feed.
    """

    share: float
    feeds: tuple[Feed, ...]
    shares: tuple[float, ...] = (1.0,)
    standby: Feed | None = None

    def all_feeds(self) -> tuple[Feed, ...]:
        return self.feeds if self.standby is None else (*self.feeds, self.standby)


@dataclass(frozen=True)
class Turn:
    """A group, and the index of the feed whose turn it is."""

    group: int
    owed: int


class Mixture:
    """Weighted fair turns on both levels. The state is the counts of tokens."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self._outer = ShareMixer([group.share for group in groups])
        self._inner = [ShareMixer(group.shares) for group in groups]
        self._stood_in: Counter[str] = Counter()  # tokens that a source gave in the turns of others

    @property
    def identity(self) -> list[list[Any]]:
        """What makes this mixture another one than others: sources, what they read, shares."""
        rows: list[list[Any]] = []
        for group, share in zip(self.groups, self._outer.shares, strict=True):
            if group.standby is None:
                rows.append([group.feeds[0].name, share])
            else:
                members = [
                    [feed.name, feed.fingerprint, part] for feed, part in zip(group.feeds, group.shares, strict=True)
                ]
                rows.append([*members, group.standby.name, share])
        return rows

    def feeds(self) -> list[Feed]:
        """Every feed once."""
        return [feed for group in self.groups for feed in group.all_feeds()]

    def turn(self) -> Turn:
        """Whose turn it is."""
        group = self._outer.choose()
        return Turn(group, self._inner[group].choose())

    def candidates(self, turn: Turn) -> list[Feed]:
        """The feed whose turn it is, then those that can stand in for it, at their shares of what stand-ins gave."""
        group, given = self.groups[turn.group], self._stood_in
        others = [index for index in range(len(group.feeds)) if index != turn.owed]
        others.sort(key=lambda index: (given[group.feeds[index].name] + 1) / group.shares[index])
        return [group.feeds[index] for index in (turn.owed, *others)]

    def add(self, turn: Turn, giver: str, tokens: int) -> None:
        """Count tokens that `giver` gave in this turn."""
        self._outer.add(turn.group, tokens)
        self._inner[turn.group].add(turn.owed, tokens)
        if giver != self.groups[turn.group].feeds[turn.owed].name:
            self._stood_in[giver] += tokens

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        inner = [list(mixer.counts) for mixer in self._inner]
        return {"counts": list(self._outer.counts), "inner": inner, "stood_in": dict(self._stood_in)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._outer.counts = list(state["counts"])
        for mixer, counts in zip(self._inner, state["inner"], strict=True):
            mixer.counts = list(counts)
        self._stood_in = Counter(state["stood_in"])
