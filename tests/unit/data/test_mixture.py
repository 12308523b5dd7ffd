import json

import pytest

from sigma.data.feed import Feed
from sigma.data.generators import GeneratorSource
from sigma.data.mixture import Group, Mixture


class Named(GeneratorSource):
    def __init__(self, name):
        super().__init__("parity", 0)
        self.name = name


@pytest.fixture
def mixture(byte_tokenizer):
    """Natural text from three sources with a standby at 0.8, code at 0.2."""
    a, b, c, bundled, code = (Feed(Named(name), byte_tokenizer) for name in ("a", "b", "c", "bundled", "code"))
    return Mixture([Group(0.8, (a, b, c), (0.5, 0.3, 0.2), bundled), Group(0.2, (code,))])


def run(mixture, n, giver):
    """n turns of 10 tokens; `giver` chooses among the candidates. Tokens by source, and whose turns they were."""
    given, turns = {}, []
    for _ in range(n):
        turn = mixture.turn()
        name = giver([feed.name for feed in mixture.candidates(turn)])
        mixture.add(turn, name, 10)
        given[name] = given.get(name, 0) + 10
        turns.append((turn.group, turn.owed))
    return given, turns


def test_shares_hold_within_groups_and_between_them(mixture):
    given, _ = run(mixture, 1000, lambda names: names[0])
    assert given == {"a": 4000, "b": 2400, "c": 1600, "code": 2000}


def test_turns_do_not_depend_on_who_gives(mixture, byte_tokenizer):
    _, turns = run(mixture, 200, lambda names: names[0])
    other = Mixture(mixture.groups)
    assert run(other, 200, lambda names: names[-1])[1] == turns


def test_turns_of_groups_are_those_of_a_group_with_nothing_but_its_standby(mixture):
    standby, code = mixture.groups[0].standby, mixture.groups[1]
    alone = Mixture([Group(0.8, (standby,)), code])
    groups = [group for group, _ in run(mixture, 200, lambda names: names[0])[1]]
    assert groups == [group for group, _ in run(alone, 200, lambda names: names[0])[1]]


def test_stand_ins_give_by_their_shares(mixture):
    given, _ = run(mixture, 2000, lambda names: names[0] if names[0] != "a" else names[1])
    assert given["b"] == pytest.approx(4800 + 8000 * 0.6, rel=0.01)
    assert given["c"] == pytest.approx(3200 + 8000 * 0.4, rel=0.01)


def test_counts_come_back(mixture):
    run(mixture, 37, lambda names: names[len(names) // 2])
    other = Mixture(mixture.groups)
    other.load_state_dict(json.loads(json.dumps(mixture.state_dict())))
    assert run(other, 50, lambda names: names[1 % len(names)]) == run(mixture, 50, lambda names: names[1 % len(names)])
