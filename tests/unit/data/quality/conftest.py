import random

import pytest

from sigma.data.corpus import load_corpus
from sigma.data.quality.contamination import Contamination
from sigma.data.quality.gate import Gate
from sigma.data.record import Record

PROSE = ("henry", "spurgeon", "devil")  # commentaries and a dictionary in sentences; the others hold code and verses


@pytest.fixture(scope="session")
def prose() -> list[Record]:
    """Good English prose."""
    return [record for record in load_corpus().records("natural", validation=False) if record.source in PROSE]


@pytest.fixture
def vocabulary(prose) -> list[str]:
    """Words of the prose, to make texts from."""
    return sorted({word for record in prose[:20] for word in record.text.split() if word.isalpha()})


@pytest.fixture
def make_text(vocabulary):
    """Random words in lines like sentences; another text for each seed."""

    def make(seed: int, words: int = 200) -> str:
        draw = random.Random(seed)
        chosen = draw.choices(vocabulary, k=words)
        chosen[::12] = ["The"] * len(chosen[::12])
        chosen[6::12] = ["and"] * len(chosen[6::12])
        return "\n".join(" ".join(chosen[at : at + 12]) + "." for at in range(0, words, 12))

    return make


@pytest.fixture(scope="session")
def gate() -> Gate:
    """The gate for English pages, without held-out texts."""
    return Gate(held_out=lambda: Contamination([]), languages=("en",))


@pytest.fixture
def page():
    """A record that is a page of the web."""
    return lambda text: Record("commoncrawl", "a page", text)
