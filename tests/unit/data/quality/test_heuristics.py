"""Each rule drops its own kind of junk for its own reason, and good prose passes."""

# ruff: noqa: RUF001 - several scripts

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigma.data.quality.heuristics import RULES, TOP_NGRAM, Page, broken_rule, repeated_phrase
from sigma.data.quality.words import Words


def reason(text, language="en"):
    return broken_rule(Page(text, Words(text), language))


def lines(make_text, count=14, seed=1):
    """Sentences that differ, one on a line."""
    return make_text(seed, 12 * count).splitlines()


JUNK = {
    "too_short": lambda t: "A few words only, and they make a sentence.",
    "too_long": lambda t: t(1, 100_100),
    "symbols": lambda t: "\n".join(f"{line} #tag #more #tags" for line in lines(t)),
    "few_letters": lambda t: "\n".join(f"{line} 12 7 3,000 1999 88 41." for line in lines(t)),
    "word_length": lambda t: "\n".join(f"the {'x' * 40}{i} and {'y' * 50}{i} have." for i in range(20)),
    "no_stop_words": lambda t: "\n".join(f"Cheap shoes {i} buy now best price online shop sale." for i in range(12)),
    "boilerplate": lambda t: "\n".join([*lines(t, 8), "Our site uses cookies and JavaScript.", "Privacy policy."]),
    "bullet_list": lambda t: "\n".join(f"• {line}" for line in lines(t)),
    "cut_lines": lambda t: "\n".join(line[:-1] + ("..." if i % 2 else "…") for i, line in enumerate(lines(t))),
    "few_sentences": lambda t: "\n".join(line[:-1] for line in lines(t)),
    "short_lines": lambda t: "\n".join([*lines(t, 4), *(f"Entry the {word}." for word in t(3, 15).split())]),
    "repeated_lines": lambda t: "\n".join([*lines(t, 10), *lines(t, 10)[:3]]),
    "repeated_phrase": lambda t: " ".join(f"and the house {word} and the house." for word in t(2, 60).split()),
    "repeated_text": lambda t: " ".join([t(4), *(" ".join(t(4).split()[at : at + 15]) for at in (0, 30, 60))]),
}  # fmt: skip


@pytest.mark.parametrize("name", [rule.__name__ for rule in RULES])
def test_junk_of_each_kind_is_dropped_for_its_reason(name, make_text):
    assert reason(JUNK[name](make_text)) == name


@pytest.mark.parametrize("words, expected", [(18, None), (27, "repeated_text")], ids=["8 %", "12 %"])
def test_a_long_passage_that_comes_twice_meets_the_bound_of_long_runs(words, expected, make_text):
    text = make_text(4)
    assert reason(f"{text}\n{' '.join(text.split()[30 : 30 + words])}.") == expected


def test_lorem_ipsum_is_boilerplate(make_text):
    assert reason(make_text(1) + "\nLorem ipsum dolor sit amet.") == "boilerplate"


def test_sentences_of_random_words_pass(make_text):
    assert [reason(make_text(seed)) for seed in range(20)] == [None] * 20


def test_good_prose_passes(prose):
    kept = sum(reason(record.text) is None for record in prose)
    assert kept >= 0.99 * len(prose) > 2000


def test_the_stop_words_are_asked_of_english_only(make_text):
    text = JUNK["no_stop_words"](make_text)
    assert reason(text) == "no_stop_words"
    assert reason(text, "fr") != "no_stop_words"


CHINESE = (
    "北京是中华人民共和国的首都，位于华北平原的北部边缘。它有三千多年的建城史和八百多年的建都史。\n"
    "城市的中心是故宫，明清两代的皇帝曾经居住在那里。每年有许多游客从世界各地来参观这座宫殿。\n"
    "秋天是最美的季节，香山的红叶吸引着人们。冬天寒冷而干燥，夏天炎热多雨，春天常常刮大风。\n"
)


def test_chinese_is_measured_by_characters_not_by_spaces():
    assert reason(CHINESE, "zh") is None
    assert reason(CHINESE[:40], "zh") == "too_short"


NUMBERS = st.integers(0, 40)


@given(st.lists(NUMBERS, min_size=50, max_size=120), st.lists(NUMBERS, min_size=2, max_size=4), st.integers(0, 12))
def test_a_phrase_is_repeated_when_counting_every_run_says_so(numbers, phrase, times):
    numbers = [*numbers, *phrase * times]
    words = [f"w{number:03}" for number in numbers]  # all equally long, so that ties do not matter

    def share(n: int) -> float:
        runs = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        most = max(runs.values())
        return most * n / len(words) if most > 1 else 0.0

    expected = any(share(n) > most for n, most in TOP_NGRAM.items())
    text = " ".join(words)
    assert repeated_phrase(Page(text, Words(text), None)) is expected
