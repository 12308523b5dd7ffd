import json

import pytest

from sigma.core.strict_json import loads
from sigma.data.journal import Journal
from sigma.data.record import Damaged


def never():
    raise AssertionError("nobody has to wait")


def opened(path, offset=0, at=0, identity="a", **options):
    journal = Journal(path, identity, **options)
    journal.open(offset, at)
    return journal


def kinds(path):
    return [loads(line)["kind"] for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


@pytest.fixture
def run(path):
    """Ten documents in two batches: red was absent for 3 to 6, a block of it was left out before 8; then a kill."""
    journal = opened(path)
    journal.change(3, "red", False, "no route")
    journal.batch(5, 0, 2, 40, "aaaa")
    journal.change(7, "red", True, None)
    journal.damaged(8, "red", Damaged("f1", 2, "rotten", 3))
    journal.batch(10, 1, 2, 40, "bbbb")
    journal.change(11, "red", False, "gone again")
    return journal


def test_lines_are_strict_json_with_their_document(run, path):
    rows = [loads(line) for line in path.read_bytes().splitlines()]
    assert [(row["kind"], row["at"]) for row in rows] == [
        ("start", 0), ("down", 3), ("batch", 5), ("up", 7), ("damaged", 8), ("batch", 10), ("down", 11),
    ]  # fmt: skip
    assert rows[1]["reason"] == "no route"


def test_what_was_decided_before_is_known_up_to_the_last_complete_batch(run, path):
    again = opened(path)
    assert [again.knows(at, never) for at in (0, 9, 10, 11)] == [True, True, False, False]
    assert again.up(2, "red", True)
    assert not again.up(3, "red", True)
    assert not again.up(5, "red", False)
    assert again.up(7, "red", False)
    assert again.known_damage("red") == {("f1", 2): again.known_damage("red")["f1", 2]}
    assert str(again.known_damage("red")["f1", 2]) == str(Damaged("f1", 2, "rotten", 3))
    assert again.known_damage("red")["f1", 2].resume == 3
    assert again.known_damage("green") == {}


def test_a_batch_that_was_never_completed_decides_nothing(run, path):
    again = opened(path)
    assert again.up(11, "red", True)
    again.batch(12, 2, 2, 40, "cccc")
    assert opened(path).up(11, "red", True), "not even later, when the document is known"


def test_a_position_reads_only_what_stands_behind_it(path):
    journal = opened(path)
    journal.change(3, "red", False, "no route")
    journal.batch(5, 0, 2, 40, "aaaa")
    held = journal.position(5)
    journal.change(6, "red", True, None)
    journal.batch(9, 1, 2, 40, "bbbb")
    again = opened(path, held, 5)
    assert again.up(3, "red", True)
    assert again.up(6, "red", False)
    assert again.knows(8, never)
    assert again.position(7) == held, "while it repeats, all lines are still needed"
    assert again.position(9) == path.stat().st_size
    assert kinds(path)[-1] == "resume"


@pytest.mark.parametrize(
    "torn", [b'{"kind":"up","at":12', b"{", b'{"kind":"batch","at":12,"sha":"\xff', b'[1]\n{"at":1}\n']
)
def test_a_torn_or_foreign_line_is_passed_over(run, path, torn):
    with path.open("ab") as file:
        file.write(torn)
    again = opened(path)
    assert again.knows(9, never)
    again.batch(13, 2, 2, 40, "cccc")
    assert opened(path).knows(12, never)


def test_a_tail_that_a_power_cut_took_is_no_error(run, path):
    held = run.position(10)
    path.write_bytes(path.read_bytes()[:40])
    again = opened(path, held, 10)
    assert not again.knows(10, never)
    again.batch(12, 2, 2, 40, "cccc")
    assert again.position(12) == path.stat().st_size


@pytest.mark.parametrize("options", [{"identity": "b"}, {"fresh": True}], ids=str)
def test_a_new_run_knows_nothing_of_the_old_one(run, path, options):
    assert not opened(path, **options).knows(0, never)
    assert kinds(path)[-1] == "start"
    assert not opened(path, identity=options.get("identity", "a")).knows(0, never)


def test_a_fresh_run_goes_on_with_its_own_journal_after_its_first_checkpoint(run, path):
    journal = opened(path, fresh=True)
    journal.batch(4, 0, 2, 40, "dddd")
    assert opened(path, journal.position(4), 4, fresh=True).position(4) == path.stat().st_size
    assert kinds(path)[-1] == "resume"


def test_a_divergence_ends_what_is_known(run, path):
    again = opened(path)
    again.diverge(7, 1, "red", "gone for good")
    for journal in (again, opened(path)):
        assert journal.knows(6, never)
        assert not journal.knows(7, never)
        assert journal.known_damage("red") == {}
        assert journal.agrees_on_batch(1, 2, 40, "other")
        assert not journal.agrees_on_batch(0, 2, 40, "other")


def test_batches_and_damage_are_compared_with_what_was(run, path):
    again = opened(path)
    assert again.agrees_on_batch(1, 2, 40, "bbbb")
    assert not again.agrees_on_batch(1, 2, 40, "bbbc")
    assert again.agrees_on_batch(1, 4, 40, "bbbc"), "another batch size is another batch"
    assert again.agrees_on_damage(8, "red", (Damaged("f1", 2, "any reason"),))
    assert not again.agrees_on_damage(8, "red", ())
    assert not again.agrees_on_damage(7, "red", (Damaged("f1", 2, "any reason"),))


def test_a_follower_reads_the_present_process_of_rank_0_and_writes_nothing(run, path):
    leader = opened(path)
    size = path.stat().st_size
    follower = opened(path, follow=True)
    waits = []

    def pause():
        waits.append(1)
        if len(waits) == 3:
            leader.change(2, "red", False, "late")
            leader.batch(4, 0, 2, 40, "aaaa")
        if len(waits) > 500:
            raise TimeoutError

    assert follower.knows(3, pause)
    assert len(waits) >= 3, "the lines of the earlier process are not enough: it may diverge from them"
    assert not follower.up(2, "red", True)
    grown = path.stat().st_size
    follower.change(3, "red", True, None)
    follower.batch(4, 0, 2, 40, "aaaa")
    assert path.stat().st_size == grown > size


def test_without_a_file_nothing_is_known_or_kept():
    journal = opened(None)
    journal.change(1, "red", False, "x")
    journal.batch(2, 0, 1, 1, "a")
    assert not journal.knows(0, never)
    assert journal.position(2) == 0
    assert json.dumps(journal.position(0)) == "0"
