import gzip
import lzma

import numpy as np
import pytest

from sigma.data.baselines import WittenBellBigram, bigram_bpb, gzip_bpb, xz_bpb
from sigma.data.corpus import CorpusSource
from sigma.data.feed import Feed
from sigma.data.mixture import Group
from sigma.data.stream import BatchStream
from sigma.data.stream_settings import StreamSettings
from sigma.data.validation import Validation


@pytest.fixture
def counted():
    """Counts of the pairs 0-1, 0-1, 0-2, 1-2 over 4 tokens: c(1) = 2, c(2) = 2, n = 4, t = 2."""
    bigram = WittenBellBigram(4)
    bigram.count(np.array([0, 0]), np.array([1, 1]))
    bigram.count(np.array([0, 1]), np.array([2, 2]))
    return bigram


@pytest.mark.parametrize(
    "context, token, expected",
    [
        (0, 1, (2 + 2 * (2.5 / 6)) / 5),  # p(1) = (2 + 2/4) / (4 + 2); c(0) = 3, t(0) = 2
        (0, 3, (0 + 2 * (0.5 / 6)) / 5),  # token 3 was never seen: p(3) = (2/4) / 6
        (1, 2, (1 + 1 * (2.5 / 6)) / 2),
        (1, 1, (0 + 1 * (2.5 / 6)) / 2),
        (3, 2, 2.5 / 6),  # context 3 was never seen
        (3, 0, 0.5 / 6),
    ],
    ids=["seen pair", "unseen token", "seen pair of a rare context", "unseen pair", "unseen context", "nothing seen"],
)
def test_probability_is_the_one_computed_by_hand(counted, context, token, expected):
    assert counted.probability(np.array([context]), np.array([token]))[0] == pytest.approx(expected, abs=1e-15)


def test_probabilities_of_every_context_sum_to_one(counted):
    for context in range(4):
        assert counted.probability(np.full(4, context), np.arange(4)).sum() == pytest.approx(1, abs=1e-12)


def test_many_tokens_sum_to_one_and_batches_add_up():
    rng = np.random.default_rng(0)
    contexts, tokens = rng.integers(0, 50, 3000), rng.integers(0, 50, 3000) ** 2 // 50
    at_once, in_parts = WittenBellBigram(50), WittenBellBigram(50)
    at_once.count(contexts, tokens)
    for part in range(0, 3000, 100):
        in_parts.count(contexts[part : part + 100], tokens[part : part + 100])
        in_parts.probability(np.array([0]), np.array([0]))  # merges
    grid = np.divmod(np.arange(2500), 50)
    np.testing.assert_array_equal(at_once.probability(*grid), in_parts.probability(*grid))
    np.testing.assert_allclose(at_once.probability(*grid).reshape(50, 50).sum(1), 1, atol=1e-12)


def test_nothing_counted_is_uniform():
    assert WittenBellBigram(8).probability(np.array([3]), np.array([5])).tolist() == [1 / 8]


def test_compressors_are_gzip_9_and_xz_9e():
    text = b"abracadabra " * 200 + bytes(range(256))
    assert gzip_bpb(text) == len(gzip.compress(text, compresslevel=9, mtime=0)) * 8 / len(text)
    assert xz_bpb(text) == len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(text)
    assert xz_bpb(text) < 8


def test_bigram_reads_the_batches_of_the_stream_and_scores_the_held_out_bytes(tiny_corpus, byte_tokenizer):
    def stream():
        group = Group(1.0, (Feed(CorpusSource("natural", tiny_corpus, 0), byte_tokenizer),))
        return BatchStream([group], byte_tokenizer, StreamSettings(rows=2, length=40))

    validation = Validation(byte_tokenizer, tiny_corpus)
    reference, replay = WittenBellBigram(259), stream()
    for _ in range(4):
        batch = replay.next_batch()
        reference.count(batch.input_ids_BT.numpy(), batch.labels_BT.numpy())
    bits = 0.0
    for record in validation.documents():
        previous = 1
        for token in byte_tokenizer.encode(record.text).tolist():
            bits -= np.log2(reference.probability(np.array([previous]), np.array([token]))[0])
            previous = token
    expected = bits / len(validation.text())
    assert bigram_bpb(stream(), 4, validation, 259) == pytest.approx(expected, rel=1e-12)
    assert bigram_bpb(stream(), 0, validation, 259) == pytest.approx(np.log2(259), rel=1e-12)
