import random

import numpy as np
import pytest

from sigma.data.quality import contamination
from sigma.data.quality.contamination import Contamination, hashes_of, open_hashes, write_hashes
from sigma.data.quality.words import Words
from sigma.data.record import DataError


@pytest.fixture
def held_out(make_text):
    return [make_text(seed, 60) for seed in range(1000, 1020)]


@pytest.fixture(params=["memory", "file"])
def guard(request, held_out, tmp_path):
    if request.param == "memory":
        return Contamination([hashes_of(held_out)])
    write_hashes(tmp_path / "held_out", held_out)
    return Contamination([open_hashes(tmp_path / "held_out")])


def plant(text: str, words: list[str], at: int) -> str:
    parts = text.split()
    return " ".join([*parts[:at], *words, *parts[at:]])


def test_13_words_in_a_row_are_always_found(guard, held_out, make_text):
    draw = random.Random(1)
    for number in range(100):
        source = draw.choice(held_out).split()
        start = draw.randrange(len(source) - 12)
        text = plant(make_text(number), source[start : start + 13], draw.choice([0, 1, 77, 200]))
        assert guard.hit(Words(text)), number


def test_12_words_in_a_row_are_not(guard, held_out, make_text):
    for number, text in enumerate(held_out):
        assert not guard.hit(Words(plant(make_text(number), text.split()[20:32], 50)))


def test_nothing_is_found_in_other_texts(guard, make_text, prose):
    assert not any(guard.hit(Words(make_text(seed))) for seed in range(200))
    assert not any(guard.hit(Words(record.text)) for record in prose[:300])


def test_case_and_punctuation_do_not_hide_a_text(guard, held_out, make_text):
    disguised = "... ".join(word.upper() for word in held_out[3].replace(".", "").split()[5:18])
    assert guard.hit(Words(plant(make_text(1), [disguised], 10)))


def test_a_run_across_two_slices_of_a_long_text_is_found(guard, held_out, make_text, monkeypatch):
    monkeypatch.setattr(contamination, "SLICE", 40)
    planted = held_out[0].split()[7:20]
    for at in range(20, 60):
        assert guard.hit(Words(plant(make_text(2, 120), planted, at))), at
    assert not guard.hit(Words(make_text(2, 120)))


def test_several_sets_and_empty_ones_work_together(held_out, make_text):
    empty = np.empty(0, dtype=np.uint64)
    guard = Contamination([empty, hashes_of(held_out[:1]), hashes_of(held_out[1:])])
    assert [guard.hit(Words(text)) for text in (held_out[0], held_out[5], make_text(3), "too short", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert not Contamination([]).hit(Words(held_out[0]))
    assert not Contamination([empty]).hit(Words(held_out[0]))


def test_the_file_is_a_function_of_the_texts(held_out, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    assert write_hashes(one, held_out) == write_hashes(other, held_out[::-1]) == 20 * 48
    assert one.read_bytes() == other.read_bytes()
    assert one.stat().st_size == 16 + 8 * 20 * 48
    assert np.all(np.diff(open_hashes(one).astype(np.float64)) >= 0)


def test_a_file_without_hashes_guards_nothing(tmp_path, held_out):
    assert write_hashes(tmp_path / "none", ["short texts", "give none"]) == 0
    assert not Contamination([open_hashes(tmp_path / "none")]).hit(Words(held_out[0]))


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-3], lambda b: b"X" + b[1:], lambda b: b[:8] + b"\x02" + b[9:], lambda b: b[:10], lambda b: b""],
    ids=["torn", "another kind", "another version", "half a head", "empty"],
)
def test_a_damaged_file_is_refused(damage, held_out, tmp_path):
    path = tmp_path / "held_out"
    write_hashes(path, held_out)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="write it again"):
        open_hashes(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        open_hashes(tmp_path / "nothing")
