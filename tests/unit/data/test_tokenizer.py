import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma.data.tokenizer import FIRST_BYTE, SPECIAL_TOKENS, load_tokenizer, train_bpe

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
NAMES = pytest.mark.parametrize("name", ["bpe8k", "bytes"])


@NAMES
@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_round_trip_is_lossless_for_any_unicode(name, text):
    tokenizer = load_tokenizer(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_length_V[ids].sum() == len(text.encode())
    assert ids.min(initial=FIRST_BYTE) >= FIRST_BYTE


@NAMES
@given(text=TEXTS)
@settings(max_examples=25, deadline=None)
def test_transformers_class_gives_the_same_ids_and_text(name, text):
    tokenizer, fast = load_tokenizer(name), transformers_class(name)
    ids = fast(text, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer.encode(text).tolist()
    assert fast.decode(ids) == text


def transformers_class(name, cache={}):  # noqa: B006 - one object for all examples
    return cache.setdefault(name, load_tokenizer(name).as_transformers())


@NAMES
def test_special_ids_and_bytes_come_first(name):
    tokenizer = load_tokenizer(name)
    fast = tokenizer.as_transformers()
    assert (fast.pad_token_id, fast.bos_token_id, fast.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode([0, FIRST_BYTE + ord("A"), 1, FIRST_BYTE + ord("~"), 2]) == "A~"
    assert tokenizer.byte_length_V[:259].tolist() == [0] * 3 + [1] * 256


@NAMES
def test_the_name_of_a_special_token_in_a_text_stays_text(name):
    tokenizer = load_tokenizer(name)
    text = "a" + "".join(SPECIAL_TOKENS) + "b"
    assert tokenizer.encode(text).min() >= FIRST_BYTE
    assert tokenizer.decode(tokenizer.encode(text)) == text


@NAMES
def test_transformers_class_survives_saving(name, tmp_path):
    from transformers import AutoTokenizer

    fast = load_tokenizer(name).as_transformers()
    fast.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Ünïcödé <|bos|> text,  two blanks\n\tand a tab 123"
    assert again(text, add_special_tokens=False)["input_ids"] == load_tokenizer(name).encode(text).tolist()
    assert again("a")["input_ids"] == [1, FIRST_BYTE + ord("a")]
    assert again.pad_token_id == 0


@NAMES
def test_batch_equals_single(name):
    tokenizer = load_tokenizer(name)
    texts = ["", "one", "two words", "é" * 40]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_sizes(bpe, byte_tokenizer):
    assert (bpe.vocab_size, byte_tokenizer.vocab_size) == (8192, 259)


def test_bpe_shortens_held_out_text(bpe, corpus):
    texts = [record.text for record in corpus.records("natural", validation=True)][:50]
    assert sum(len(text.encode()) for text in texts) > 3.3 * sum(map(len, bpe.encode_batch(texts)))


def test_bytes_that_are_no_utf8_decode_to_the_replacement_character(bpe):
    assert bpe.decode([FIRST_BYTE + 0xFF, FIRST_BYTE + ord("a")]) == "\ufffda"


@NAMES
def test_pickles_as_its_name(name):
    packed = pickle.dumps(load_tokenizer(name))
    assert len(packed) < 200
    assert pickle.loads(packed) is load_tokenizer(name)


def test_training_is_reproducible_and_fills_the_vocabulary():
    texts = ["the cat sat on the mat", "the dog sat on the log"] * 3
    assert train_bpe(iter(texts), 280) == train_bpe(iter(texts), 280)


@pytest.mark.slow
def test_retraining_gives_the_recorded_hash(corpus):
    content = train_bpe(corpus.training_texts())
    assert hashlib.sha256(content.encode()).hexdigest() == corpus.provenance["tokenizer"]["sha256"]
