import random

import numpy as np
import pytest

from sigma.data.quality.duplicates import Duplicates, signature
from sigma.data.quality.words import Words

N = 1 << 20


def sign(text, name="a", source="web"):
    return signature(source, name, Words(text), N)


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}


def edited(words: list[str], similarity: float, draw: random.Random) -> list[str]:
    """Words replaced at random places until the Jaccard similarity of the shingles is at most `similarity`."""
    before, after = shingles(words), list(words)
    while True:
        now = shingles(after)
        if len(before & now) / len(before | now) <= similarity:
            return after
        after[draw.randrange(len(after))] = f"new{draw.random()}"


def found(pairs) -> float:
    hits = 0
    for one, other in pairs:
        duplicates = Duplicates(10)
        duplicates.seen(sign(one, "one"))
        hits += duplicates.seen(sign(other, "other"))
    return hits / len(pairs)


def edited_pairs(make_text, count, words, similarity):
    """Texts, each with a copy of that similarity."""
    draw = random.Random(3)
    originals = [make_text(seed, words).split() for seed in range(count)]
    return [(" ".join(one), " ".join(edited(one, similarity, draw))) for one in originals]


def test_edits_down_to_a_similarity_of_090_are_found(make_text):
    assert found(edited_pairs(make_text, 300, 400, 0.9)) >= 0.95


def test_the_share_found_follows_the_formula(make_text):
    expected = 1 - (1 - 0.6**8) ** 9  # 0.14
    assert found(edited_pairs(make_text, 200, 300, 0.6)) == pytest.approx(expected, abs=0.08)


def test_unrelated_texts_are_not_duplicates(make_text, prose):
    duplicates = Duplicates(5000)
    texts = [make_text(seed, 60) for seed in range(1000)] + [record.text for record in prose]
    wrong = sum(duplicates.seen(sign(text, str(number))) for number, text in enumerate(texts))
    assert len(texts) > 3000
    assert wrong < 0.001 * len(texts)


def test_case_and_punctuation_make_no_difference(make_text):
    duplicates, text = Duplicates(4), make_text(1)
    assert not duplicates.seen(sign(text, "one"))
    assert duplicates.seen(sign(text.upper().replace(".", " -- "), "two"))


def test_a_document_is_no_duplicate_of_itself_in_a_later_epoch(make_text):
    texts = [make_text(seed) for seed in range(6)]
    duplicates = Duplicates(8)
    for _ in range(3):
        assert not any(duplicates.seen(sign(text, str(number))) for number, text in enumerate(texts))
    assert duplicates.seen(sign(texts[5], "another name"))
    assert duplicates.seen(sign(texts[5], "5", source="another source"))


def test_only_the_last_documents_count(make_text):
    texts = [make_text(seed) for seed in range(8)]
    duplicates = Duplicates(3)
    for number, text in enumerate(texts):
        duplicates.seen(sign(text, str(number)))
    assert [duplicates.seen(sign(texts[n], "copy")) for n in (7, 6, 5)] == [True] * 3
    assert not duplicates.seen(sign(texts[4], "copy"))


def test_a_document_that_came_again_counts_from_then_on(make_text):
    texts = [make_text(seed) for seed in range(4)]
    duplicates = Duplicates(2)
    for number in (0, 0, 1):  # the first entry of 0 leaves, the second stays
        duplicates.seen(sign(texts[number], str(number)))
    assert duplicates.seen(sign(texts[0], "copy"))
    assert not any(duplicates.seen(sign(texts[number], str(number))) for number in (2, 3, 0))


def test_what_was_dropped_does_not_push_others_out(make_text):
    duplicates, text, copies = Duplicates(2), make_text(1), make_text(2)
    duplicates.seen(sign(text, "first"))
    duplicates.seen(sign(copies, "second"))
    assert all(duplicates.seen(sign(copies, f"copy {n}")) for n in range(5))
    assert duplicates.seen(sign(text, "copy"))


def test_after_loading_the_kept_signatures_the_answers_are_the_same(make_text):
    draw = random.Random(9)
    names = [(str(n), make_text(draw.randrange(40), 50)) for n in range(300)]
    window = 16
    through, kept = Duplicates(window), []
    for name, text in names[:150]:
        if not through.seen(sign(text, name)):
            kept.append(sign(text, name))
    resumed = Duplicates(window)
    resumed.load(np.array(kept))  # more than fit
    answers = [(through.seen(sign(text, name)), resumed.seen(sign(text, name))) for name, text in names[150:]]
    assert all(one == other for one, other in answers)
    assert 0 < sum(one for one, _ in answers) < len(answers)


def test_a_signature_depends_on_the_beginning_alone(make_text):
    text = make_text(1, 400)
    head, tail = text[:900], text[900:]
    same = signature("s", "n", Words(head + tail.upper()[::-1]), 800)
    np.testing.assert_array_equal(signature("s", "n", Words(text), 800), same)
    longer = [signature("s", "n", Words(head + rest), 1200) for rest in (tail, tail[::-1])]
    assert not np.array_equal(*longer)


def test_a_text_of_few_words_has_no_signature_and_is_never_a_duplicate():
    duplicates = Duplicates(4)
    assert sign("only four short words") is None
    assert sign("here are five short words") is not None
    assert not duplicates.seen(None)
    assert not duplicates.seen(None)


def test_a_window_of_nothing_finds_nothing(make_text):
    duplicates = Duplicates(0)
    duplicates.load(np.empty((0, Duplicates.width), dtype=np.int64))
    assert not duplicates.seen(sign(make_text(1), "one"))
    assert not duplicates.seen(sign(make_text(1), "two"))


def test_signatures_are_rows_of_the_stated_width(make_text):
    one = sign(make_text(1))
    assert (one.dtype, one.shape) == (np.dtype(np.int64), (Duplicates.width,))
