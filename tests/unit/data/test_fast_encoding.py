"""tiktoken gives the ids of a tokenizer.json, or is not used for it."""

import itertools
import json
import pickle
import random
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from sigma.data import fast_encoding
from sigma.data.fast_encoding import LONG_RUN, FastEncoder, NotEqualError
from sigma.data.tokenizer import assemble, byte_characters, load_content, load_tokenizer, train_bpe

LETTERS = byte_characters()
SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
CONTEXTS = ("{0}a", "1{0}1", " {0}", "a{0}a", ".{0}.", "\n {0} \nx", "{0}{0}  {0}", "'{0}'s'{0}")


def assert_same(tokenizer, text):
    """The ids of `text` are those of `tokenizers`."""
    np.testing.assert_array_equal(
        tokenizer.encode(text), tokenizer._rust.encode(text, add_special_tokens=False).ids, strict=False
    )


def with_merges(*merges, order=None):
    """A tokenizer with these merges. `order`: the merged pieces in the order of their ids."""
    pieces = [left + right for left, right in merges]
    names = ["<|pad|>", "<|bos|>", "<|eos|>", *LETTERS, *(order or dict.fromkeys(pieces))]
    return assemble({name: index for index, name in enumerate(names)}, list(merges))


def changed(rust, **changes):
    """The same tokenizer with other parts; `model__x` changes x of the model."""
    tree = json.loads(rust.to_str())
    for path, value in changes.items():
        *folders, name = path.split("__")
        (tree[folders[0]] if folders else tree)[name] = value
    return RustTokenizer.from_str(json.dumps(tree))


# ------------------------------------------------------------------ equal
def test_the_bundled_tokenizer_is_encoded_by_tiktoken(bpe, byte_tokenizer):
    assert (bpe.encoder, byte_tokenizer.encoder) == ("tiktoken", "bytes")


@given(text=UNICODE)
@settings(max_examples=300, deadline=None)
def test_ids_are_those_of_the_file_for_any_unicode(text):
    assert_same(load_tokenizer("bpe8k"), text)


@given(draws=st.lists(st.integers(3, 8191), max_size=40), between=st.lists(UNICODE, max_size=3))
@settings(max_examples=200, deadline=None)
def test_ids_are_those_of_the_file_for_any_mixture_of_pieces(draws, between):
    tokenizer = load_tokenizer("bpe8k")
    assert_same(tokenizer, "".join([tokenizer.decode(draws), *between, tokenizer.decode(draws[::-1])]))


def test_ids_are_those_of_the_file_for_the_bundled_texts(bpe, corpus):
    for kind in ("natural", "code"):
        for record in itertools.islice(corpus.records(kind, validation=True), 150):
            assert_same(bpe, record.text)


def assert_same_around(tokenizer, points):
    """Every code point stands in every context, many of them in a text."""
    for context in CONTEXTS:
        for first in range(0, len(points), 2000):
            assert_same(tokenizer, "|a 1".join(context.format(chr(point)) for point in points[first : first + 2000]))


def scalar_values(step):
    """Unicode scalar values: all of Latin, Greek and the spaces, of the others each `step`-th."""
    return [
        point for point in range(0x110000) if not 0xD800 <= point < 0xE000 and (point < 0x400 or point % step == 0)
    ] + list(range(0x2000, 0x2070))


def test_characters_are_split_alike_in_every_context(bpe):
    assert_same_around(bpe, scalar_values(step=97))


@pytest.mark.slow
def test_every_character_is_split_alike_in_every_context(bpe):
    assert_same_around(bpe, scalar_values(step=1))


@pytest.mark.parametrize("end", ["", "x", "\n", "\u3000.", " 1"], ids=repr)
@pytest.mark.parametrize("space", SPACES, ids=lambda space: f"U+{ord(space):04X}")
def test_runs_of_spaces_are_split_alike(bpe, space, end):
    for before, length in itertools.product(["", "a", "1 ", ".\n"], [1, 2, 3, 70]):
        assert_same(bpe, before + space * length + end)


MERGES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7)


@given(picks=MERGES, texts=st.lists(st.text("abc ", max_size=30), min_size=1, max_size=5))
@settings(max_examples=400, deadline=None)
def test_random_merges_give_equal_ids_or_are_refused(picks, texts):
    rust = random_merges(picks)
    try:
        encoder = FastEncoder(rust, LETTERS)
    except NotEqualError:
        return
    for text in texts:
        assert encoder.encode(text).tolist() == rust.encode(text, add_special_tokens=False).ids


def random_merges(picks):
    """Merges of pieces that are there by then; each pick is two of their numbers."""
    known, merges = ["a", "b", "c", LETTERS[32]], []
    for left, right in picks:
        pair = known[left % len(known)], known[right % len(known)]
        if pair not in merges:
            merges.append(pair)
            known.append("".join(pair))
    return with_merges(*merges)


def test_random_merges_are_accepted_and_refused():
    draw, outcomes = random.Random(1), set()
    for _ in range(100):
        try:
            FastEncoder(random_merges([(draw.randrange(9), draw.randrange(9)) for _ in range(5)]), LETTERS)
            outcomes.add("accepted")
        except NotEqualError as reason:
            outcomes.add(str(reason).split(" '")[0])
    assert {"accepted", "its merges do not lead to"} <= outcomes


def test_a_trained_tokenizer_of_another_size_is_encoded_by_tiktoken(corpus):
    made = load_content(train_bpe(itertools.islice(corpus.training_texts(), 300), 1500))
    assert made.encoder == "tiktoken"
    for record in itertools.islice(corpus.records("natural", validation=True), 50):
        assert_same(made, record.text)


# ------------------------------------------------------------------ refused
def test_merges_that_tiktoken_would_take_otherwise_are_refused():
    rust = with_merges(("b", "c"), ("a", "b"), ("ab", "c"))
    with pytest.raises(NotEqualError, match="do not lead to 'abc'"):
        FastEncoder(rust, LETTERS)
    theirs, ours = rust.encode("abc", add_special_tokens=False).ids, load_content(rust.to_str())
    assert encoded_unchecked(rust, "abc") != theirs
    assert ours.encode("abc").tolist() == theirs, "such a tokenizer stays with its own library"
    assert ours.encoder == "tokenizers: its merges do not lead to 'abc'"


def encoded_unchecked(rust, text):
    """What tiktoken makes of the pieces of a tokenizer."""
    from tiktoken import Encoding

    to_byte = {ord(character): byte for byte, character in enumerate(LETTERS)}
    pieces = [(piece, index) for piece, index in rust.get_vocab().items() if index > 2]
    ranks = {piece.translate(to_byte).encode("latin-1"): index for piece, index in pieces}
    return Encoding("x", pat_str=fast_encoding.SPLIT, mergeable_ranks=ranks, special_tokens={}).encode_ordinary(text)


GOOD = with_merges(("a", "b"), ("ab", "c"))
REFUSED = {
    "two ways": (with_merges(("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")), "two of its merges make 'abc'"),
    "late parts": (with_merges(("ab", "c"), ("a", "b")), "comes before theirs"),
    "ids in another order": (with_merges(("a", "b"), ("c", "a"), order=["ca", "ab"]), "do not follow its merges"),
    "dropout": (changed(GOOD, model__dropout=0.5), "dropout"),
    "ignored merges": (changed(GOOD, model__ignore_merges=True), "ignore_merges"),
    "fallback": (changed(GOOD, model__byte_fallback=True), "byte_fallback"),
    "word ends": (changed(GOOD, model__merges=[], model__end_of_word_suffix="c"), "end_of_word_suffix"),
    "normaliser": (changed(GOOD, normalizer={"type": "NFC"}), "changes the text"),
    "cut off": (changed(GOOD, truncation={"max_length": 3, "strategy": "LongestFirst", "stride": 0,
                                          "direction": "Right"}), "number of its ids"),
    "no splitting": (changed(GOOD, pre_tokenizer=None), "another pattern"),
    "space before": (changed(GOOD, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                                  "use_regex": True}), "another pattern"),
    "no pattern": (changed(GOOD, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                                "use_regex": False}), "another pattern"),
    "bytes missing": (changed(GOOD, model__merges=[], model__vocab={"a": 3}, added_tokens=[]), "for 255 of the bytes"),
    "words": (changed(GOOD, model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "WordLevel"),
}  # fmt: skip


@pytest.mark.parametrize("rust, reason", REFUSED.values(), ids=REFUSED)
def test_what_is_not_the_same_is_refused_with_its_reason(rust, reason):
    FastEncoder(GOOD, LETTERS)
    with pytest.raises(NotEqualError, match=reason):
        FastEncoder(rust, LETTERS)


def test_where_tiktoken_cannot_be_imported_the_other_library_is_used_and_said(monkeypatch):
    content = with_merges(("a", "b")).to_str()
    expected = load_content(content).encode("abc ab")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    without = load_content(content)
    assert without.encoder.startswith("tokenizers: import of tiktoken halted")
    assert without.encode("abc ab").tolist() == without.encode_batch(["abc ab"])[0].tolist() == expected.tolist()


def test_added_tokens_are_refused():
    rust = with_merges(("a", "b"))
    rust.add_tokens(["cab"])
    with pytest.raises(NotEqualError, match="added tokens"):
        FastEncoder(rust, LETTERS)


# ------------------------------------------------------------------ odd texts
@pytest.mark.parametrize("text", ["\ud800", "a\udfff b"], ids=ascii)
def test_lone_surrogates_are_the_error_that_they_are_in_the_other_library(bpe, text):
    with pytest.raises(TypeError):
        bpe._rust.encode(text)
    with pytest.raises(TypeError, match="surrogates not allowed"):
        bpe.encode(text)
    with pytest.raises(TypeError, match="surrogates not allowed"):
        bpe.encode_batch(["a", text])


@pytest.mark.parametrize("text", [" " * 1_100_000 + "x", "a" + "\n" * 1_100_000 + " x"], ids=["blanks", "line breaks"])
def test_more_spaces_than_the_expression_has_room_for(bpe, text):
    assert_same(bpe, text)


@given(text=st.text(SPACES + "\x1ca.1" * 4, max_size=60))
@settings(max_examples=300, deadline=None)
def test_cutting_at_long_runs_of_spaces_changes_nothing(text):
    tokenizer, spaces = load_tokenizer("bpe8k"), fast_encoding._LONG_SPACES.pattern
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_encoding, "LONG_RUN", 2)
        patch.setattr(fast_encoding, "_LONG_SPACES", re.compile(spaces.replace(str(LONG_RUN), "2")))
        assert_same(tokenizer, text)
        assert fast_encoding._cut("a  a   a  ") == ["a ", " a  ", " a  "]


def test_the_runs_are_of_what_the_expression_takes_for_spaces():
    from tiktoken import Encoding

    found = Encoding("x", pat_str=r"\s", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={})
    everything = "".join(map(chr, scalar_values(step=1)))
    theirs = set(bytes(found.encode_ordinary(everything)).decode())
    assert theirs == set(re.findall(fast_encoding._SPACE, everything))
    assert set(SPACES) < theirs


def test_threads_get_the_same_ids(bpe, corpus):
    texts = [record.text for record in itertools.islice(corpus.records("natural", validation=True), 40)]
    expected = [ids.tolist() for ids in bpe.encode_batch(texts)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: [ids.tolist() for ids in bpe.encode_batch(texts)], range(8)))
    assert found == [expected] * 8


def test_a_pickle_is_encoded_by_tiktoken_again():
    made = load_content(with_merges(("a", "b")).to_str())
    again = pickle.loads(pickle.dumps(made))
    assert (again.encoder, again.encode("cab").tolist()) == (made.encoder, made.encode("cab").tolist())
    assert made.encoder == "tiktoken"
