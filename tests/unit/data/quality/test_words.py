# ruff: noqa: RUF001 - several scripts
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma.data.quality import words as module
from sigma.data.quality.words import Ngrams, Words, normalise

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


def spelled(words: Words) -> list[str]:
    return [words.data[at : at + n].decode() for at, n in zip(words.start_N, words.length_N, strict=True)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("  !? ", []),
        ("Hello, World!", ["hello", "world"]),
        ("it's x-ray 3.5", ["it", "s", "x", "ray", "3", "5"]),
        ("“Élan” — naïve…", ["élan", "naïve"]),
        ("日本語 and カナ。", ["日", "本", "語", "and", "カ", "ナ"]),
        ("а我b", ["а", "我", "b"]),
        ("Straße\u2028Ω", ["straße", "ω"]),
    ],
    ids=["empty", "signs", "punctuation", "inside words", "beyond ASCII", "kana and han", "mixed", "separator"],
)
def test_a_text_becomes_its_lower_case_words_without_punctuation(text, expected):
    assert spelled(Words(text)) == expected


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_words_of_scripts_with_spaces_are_those_of_a_split(text):
    words = Words(text)
    assert "".join(spelled(words)) == normalise(text).decode().replace(" ", "")
    if not any("\u2fff" < character < "\ua000" for character in text):
        assert [word.encode() for word in spelled(words)] == normalise(text).split()


@given(left=TEXTS, right=TEXTS)
@settings(max_examples=150, deadline=None)
def test_equal_words_and_only_those_have_equal_hashes(left, right):
    words = Words(f"{left} {right} {left}")
    by_word: dict[str, int] = {}
    for word, value in zip(spelled(words), words.hash_N.tolist(), strict=True):
        assert by_word.setdefault(word, value) == value
    assert len(set(by_word.values())) == len(by_word)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 63, 64])
def test_every_byte_of_a_word_counts_up_to_64(length):
    one = "a" * length
    others = [one[:at] + "b" + one[at + 1 :] for at in range(length)]
    assert len(set(Words(" ".join([one, *others, one + "a"])).hash_N.tolist())) == length + 2


def test_hashes_do_not_depend_on_the_neighbours_or_on_the_pieces(monkeypatch):
    text = " ".join(f"word{i} 漢字{i}" for i in range(300))
    whole = Words(text)
    monkeypatch.setattr(module, "PIECE_BYTES", 50)
    pieces = Words(text)
    np.testing.assert_array_equal(pieces.hash_N, whole.hash_N)
    np.testing.assert_array_equal(pieces.start_N, whole.start_N)
    np.testing.assert_array_equal(pieces.length_N, whole.length_N)
    assert Words("word7").hash_N[0] in whole.hash_N


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10, 13])
def test_runs_are_equal_exactly_where_their_words_are(n):
    ids = np.random.default_rng(n).integers(0, 2, 400)
    hashes = Ngrams(Words("zero one").hash_N[ids])[n]
    runs = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    assert len(hashes) == len(runs)
    assert len(set(zip(runs, hashes.tolist(), strict=True))) == len(set(runs)) == len(set(hashes.tolist()))


def test_a_text_shorter_than_the_run_has_none():
    assert [len(Words("a b c").ngrams[n]) for n in (2, 3, 4, 13)] == [2, 1, 0, 0]


def test_the_hashes_are_those_that_files_were_written_with():
    assert [hex(value) for value in Words("the Cat sat-on 漢 " + "x" * 30).ngrams[3].tolist()] == [
        "0x7e5f1b068244bfac", "0x3de1617b30a55ecd", "0x9413d9de4b33956a", "0x25102f9b2e1d87b0",
    ]  # fmt: skip


def test_lone_surrogates_are_no_text():
    with pytest.raises(UnicodeEncodeError):
        Words("a \ud800 b")
