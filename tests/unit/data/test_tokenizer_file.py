"""Foreign tokenizer.json files: adopted where every text comes back, refused otherwise."""

import hashlib
import json
import os
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

from sigma.core.errors import ConfigError
from sigma.data.corpus import FOLDER
from sigma.data.tokenizer import FIRST_BYTE, SPECIAL_TOKENS, load_content, load_tokenizer
from sigma.data.tokenizer_file import KNOWN_PATTERNS, MOST_BYTES, adopt

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
LINES = ["the cat sat on the mat, it's 1234 mats", "the dog\n\n  sat on the log", "über naïve Straße 日本語"] * 4


def foreign(splitter, *, alphabet=True, special=("<s>", "</s>", "[MASK]"), vocabulary=400, **model) -> RustTokenizer:
    """A byte-level BPE as other programs train it: ids in their own order, their own special tokens."""
    made = RustTokenizer(models.BPE(**model))
    made.pre_tokenizer = splitter
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(special), initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return made


def split(pattern, behavior="isolated"):
    parts = [pre_tokenizers.Split(pattern, behavior), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def regex(pattern):
    from tokenizers import Regex

    return split(Regex(pattern))


SPLITTERS = {
    "GPT-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    **{f"pattern {i}": regex(pattern) for i, pattern in enumerate(KNOWN_PATTERNS)},
    "digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "string": split(" ", "merged_with_next"),
}
KINDS = pytest.mark.parametrize("kind", SPLITTERS)
_made: dict = {}


def adopted(kind):
    """(foreign tokenizer, ours)."""
    if kind not in _made:
        made = foreign(SPLITTERS[kind])
        _made[kind] = made, load_content(adopt(made.to_str()))
    return _made[kind]


@KINDS
@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_round_trip_is_lossless_for_any_unicode(kind, text):
    _, ours = adopted(kind)
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert ours.byte_length_V[ids].sum() == len(text.encode())
    assert ids.min(initial=FIRST_BYTE) >= FIRST_BYTE


@KINDS
def test_texts_are_cut_as_by_the_file_with_our_first_ids(kind):
    theirs, ours = adopted(kind)
    for text in ["the cat sat on 1234 mats", "it's  über\n\nnaïve", "日本語 the"]:
        pieces = theirs.encode(text, add_special_tokens=False).tokens
        assert [ours._rust.id_to_token(int(token)) for token in ours.encode(text)] == pieces
    assert ours.byte_length_V[:259].tolist() == [0] * 3 + [1] * 256
    assert ours.vocab_size == theirs.get_vocab_size()  # three special tokens for three
    names = theirs.get_vocab()
    later = [ours._rust.id_to_token(index) for index in range(259, ours.vocab_size)]
    assert [names[name] for name in later] == sorted(names[name] for name in later)


@KINDS
def test_adopting_again_changes_nothing(kind):
    _, ours = adopted(kind)
    assert adopt(ours.content) == ours.content


def test_our_own_file_is_taken_as_it_is():
    content = (FOLDER / "bpe8k.json").read_text()
    assert adopt(content) == content


def test_names_of_special_tokens_stay_text():
    _, ours = adopted("GPT-2")
    for text in ("a<s>b</s>[MASK]", "".join(SPECIAL_TOKENS)):
        assert ours.decode(ours.encode(text)) == text
        assert ours.encode(text).min() >= FIRST_BYTE


def test_bytes_that_the_file_lacks_are_added():
    made = foreign(SPLITTERS["GPT-2"], alphabet=False)
    assert made.decode(made.encode("QZ€").ids) != "QZ€"
    ours = load_content(adopt(made.to_str()))
    assert ours.decode(ours.encode("QZ€\x07")) == "QZ€\x07"


def test_an_added_token_that_merges_make_stays_a_piece():
    made = foreign(SPLITTERS["GPT-2"])
    made.add_tokens([AddedToken("the", normalized=False)])
    ours = load_content(adopt(made.to_str()))
    assert ours._rust.token_to_id("the") is not None
    assert ours.decode(ours.encode("the mat")) == "the mat"


def test_merges_written_as_strings_are_the_same_merges():
    tree = json.loads(foreign(SPLITTERS["GPT-2"]).to_str())
    content = adopt(json.dumps(tree))
    tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]
    assert adopt(json.dumps(tree)) == content


def test_ignored_merges_stay_ignored():
    tree = json.loads(foreign(SPLITTERS["GPT-2"]).to_str())
    tree["model"]["ignore_merges"] = True
    tree["model"]["vocab"]["matsmats"] = 5000
    ours = load_content(adopt(json.dumps(tree)))
    assert len(ours.encode("matsmats")) == 1


# ------------------------------------------------------------------ refused
def changed(**changes):
    tree = json.loads(foreign(SPLITTERS["GPT-2"]).to_str())
    for path, value in changes.items():
        *folders, last = path.split("__")
        place = tree
        for name in folders:
            place = place[name]
        place[last] = value
    return json.dumps(tree)


def in_sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
REFUSED = {
    "no JSON": (lambda: "{", "not a tokenizer.json"),
    "deep JSON": (lambda: "[" * 100_000, "not a tokenizer.json"),
    "no model": (lambda: "{}", "no model"),
    "a list": (lambda: "[1]", "no model"),
    "WordPiece": (lambda: changed(model__type="WordPiece"), "only byte-level BPE"),
    "Unigram": (lambda: changed(model__type="Unigram", model__vocab=[["a", -1.0]]), "only byte-level BPE"),
    "normalizer": (lambda: changed(normalizer={"type": "NFC"}), "normalizer changes the text"),
    "lower case": (
        lambda: changed(normalizer=json.loads(normalizers.Sequence([normalizers.Lowercase()]).__getstate__())),
        "normalizer changes the text",
    ),
    "prefix space": (lambda: changed(pre_tokenizer__add_prefix_space=True), "space before every text"),
    "no bytes": (lambda: changed(pre_tokenizer={"type": "Whitespace"}), "only byte-level BPE"),
    "no splitting": (lambda: changed(pre_tokenizer=None), "only byte-level BPE"),
    "removing": (
        lambda: changed(pre_tokenizer=in_sequence(
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}, BYTES)),
        "may leave out characters",
    ),
    "whitespace": (lambda: changed(pre_tokenizer=in_sequence({"type": "WhitespaceSplit"}, BYTES)), "may leave out"),
    "foreign pattern": (
        lambda: changed(pre_tokenizer=in_sequence(
            {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}, BYTES)),
        "not executed here",
    ),
    "dropout": (lambda: changed(model__dropout=0.1), "at random"),
    "word ends": (lambda: changed(model__end_of_word_suffix="</w>"), "byte-level BPE"),
    "word parts": (lambda: changed(model__continuing_subword_prefix="##"), "byte-level BPE"),
    "piece beyond bytes": (lambda: changed(model__vocab__漢=9999), "not made of bytes"),
    "merge without piece": (lambda: changed(model__merges=[["q", "q"]]), "do not fit together"),
    "odd merge": (lambda: changed(model__merges=[["q"]]), "no merge of two pieces"),
    "odd merges": (lambda: changed(model__merges=[7]), "no merge of two pieces"),
    "ids that are words": (lambda: changed(model__vocab__zz="x"), "another form"),
    "too many pieces": (lambda: changed(model__vocab={str(i): i for i in range(1 << 18 | 1)}), "more than"),
}  # fmt: skip


@pytest.mark.parametrize("make, reason", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_lossless_is_refused_with_its_reason(make, reason):
    with pytest.raises(ConfigError, match=reason):
        adopt(make())


def test_random_damage_gives_a_reason_or_a_lossless_tokenizer():
    draw, good = random.Random(1), foreign(SPLITTERS["pattern 1"], vocabulary=280).to_str()
    text = "the cat — 日本 1234\n"
    for _ in range(300):
        at, length = draw.randrange(len(good)), draw.choice([1, 1, 5, 50])
        content = good[:at] + draw.choice(["", "null", "[]", "7", '"x"', "}"]) + good[at + length :]
        try:
            ours = load_content(adopt(content))
        except ConfigError:
            continue
        assert ours.decode(ours.encode(text)) == text


# ------------------------------------------------------------------ as a file
@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(foreign(SPLITTERS["GPT-2"]).to_str(), "utf-8")
    return path


def test_a_file_loads_by_its_path_and_is_named_by_its_content(path, tmp_path):
    ours = load_tokenizer(path)
    copy = tmp_path / "copy.json"
    copy.write_text(ours.content, "utf-8")
    assert load_tokenizer(copy).name == ours.name == f"sha256:{ours.fingerprint}"
    assert ours.fingerprint == hashlib.sha256(ours.content.encode()).hexdigest()[:16]
    other = tmp_path / "other.json"
    other.write_text(foreign(SPLITTERS["digits"]).to_str(), "utf-8")
    assert load_tokenizer(other).name != ours.name


def test_a_pickle_does_not_need_the_file(path):
    ours = load_tokenizer(path)
    path.unlink()
    again = pickle.loads(pickle.dumps(ours))
    assert (again.name, again.encode("the cat").tolist()) == (ours.name, ours.encode("the cat").tolist())


def test_the_transformers_class_gives_the_same_ids(path, tmp_path):
    from transformers import AutoTokenizer

    ours = load_tokenizer(path)
    ours.as_transformers().save_pretrained(tmp_path / "saved")
    fast = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "the cat <s> 日本語  1234"
    assert fast(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    assert (fast.pad_token_id, fast.bos_token_id, fast.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"{}"], ids=["missing", "not UTF-8", "another file"])
def test_an_error_names_the_flag_and_the_file(content, tmp_path):
    path = tmp_path / "some.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"--tokenizer {path}: "):
        load_tokenizer(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ConfigError, match="larger than 64 MB"):
        load_tokenizer(path)


def test_a_device_is_not_read(monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it would never end"))
    with pytest.raises(ConfigError, match="no regular file"):
        load_tokenizer(Path(os.devnull))
