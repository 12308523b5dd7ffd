import json
import threading
from collections import Counter

import pytest
import torch

from sigma.config.data import DataSection
from sigma.core.errors import ConfigError
from sigma.data.backends import build_stream
from sigma.data.feed import Feed
from sigma.data.generators import GeneratorSource
from sigma.data.mixture import Group
from sigma.data.prefetch import DataThreadError
from sigma.data.quality.duplicates import Duplicates
from sigma.data.record import DataError
from sigma.data.stream import BatchStream
from sigma.data.stream_settings import StreamSettings
from sigma.data.window_source import WindowSource
from tests.unit.data.streams import (
    SIZE,
    SOON,
    Memory,
    NoSpam,
    go_to,
    local_groups,
    plain,
    records_of,
    remote_stream,
    snapshot,
    take,
    tallied,
)

BATCHES = 14


def make(corpus, tokenizer, prefetch=0, workers=0, *, seed=0, natural=0.7, rows=2, length=33, **ranks):
    settings = StreamSettings(rows, length, prefetch, workers, **ranks)
    return BatchStream(local_groups(corpus, tokenizer, seed, natural), tokenizer, settings, identity=str(seed))


@pytest.fixture
def whole(tiny_corpus, byte_tokenizer):
    """(batches, state after each) of an uninterrupted run; states[0] is the start. Seven epochs of the natural
    texts.
    """
    stream = make(tiny_corpus, byte_tokenizer)
    states, batches = [snapshot(stream)], []
    for _ in range(BATCHES):
        batches.append(plain(stream.next_batch()))
        states.append(snapshot(stream))
    return batches, states


@pytest.mark.parametrize("prefetch, workers", [(0, 0), (3, 0), (0, 1), (2, 3)])
def test_resume_after_every_batch_is_bit_equal(tiny_corpus, byte_tokenizer, whole, prefetch, workers):
    batches, states = whole
    for at, state in enumerate(states):
        stream = go_to(make(tiny_corpus, byte_tokenizer, prefetch, workers), state)
        assert take(stream, BATCHES - at) == batches[at:]
        stream.close()


def test_chained_resumes_are_bit_equal(tiny_corpus, byte_tokenizer, whole):
    batches, states = whole
    state, seen = states[0], []
    for part in (1, 3, 2, 4, 1, 3):
        stream = go_to(make(tiny_corpus, byte_tokenizer, prefetch=2), state)
        seen += take(stream, part)
        state = snapshot(stream)
        stream.close()
    assert seen == batches
    assert state == states[-1]


@pytest.mark.parametrize("prefetch, workers", [(1, 0), (8, 1), (0, 4), (8, 4)])
def test_order_and_position_depend_neither_on_prefetch_nor_on_workers(
    tiny_corpus, byte_tokenizer, whole, prefetch, workers
):
    stream = make(tiny_corpus, byte_tokenizer, prefetch, workers)
    for batch, state in zip(whole[0], whole[1][1:], strict=True):
        assert plain(stream.next_batch()) == batch
        assert snapshot(stream) == state
    stream.close()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_the_rows_of_the_same_batch(tiny_corpus, byte_tokenizer, world):
    one = make(tiny_corpus, byte_tokenizer, rows=4)
    ranks = [make(tiny_corpus, byte_tokenizer, rows=4, rank=rank, world=world) for rank in range(world)]
    for _ in range(BATCHES):
        whole, parts = one.next_batch(), [rank.next_batch() for rank in ranks]
        for name in ("input_ids_BT", "labels_BT", "segments_BT"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        assert sum((part.records for part in parts), ()) == whole.records
        assert sum(part.text_bytes for part in parts) == whole.text_bytes
        size = whole.tokens // world
        starts = [start + size * rank for rank, part in enumerate(parts) for start in part.cu_seqlens[:-1].tolist()]
        assert [*starts, whole.tokens] == whole.cu_seqlens.tolist()
        assert all(part.cu_seqlens[-1] == part.tokens == size for part in parts)
        assert all(snapshot(rank) == snapshot(one) for rank in ranks)


def test_rows_that_ranks_cannot_share_are_refused(tiny_corpus, byte_tokenizer):
    with pytest.raises(ValueError, match="3 rows"):
        make(tiny_corpus, byte_tokenizer, rows=3, world=2)


def test_no_record_is_lost_or_repeated_within_an_epoch(tiny_corpus, byte_tokenizer):
    stream = make(tiny_corpus, byte_tokenizer)
    ended = [name for _ in range(60) for name in stream.next_batch().records]
    for kind in ("natural", "code"):
        ids = [record for source, record in ended if source == f"tiny-{kind}"]
        expected = {record.id for record in tiny_corpus.records(kind, validation=False)}
        full_epochs = len(ids) // len(expected)
        assert full_epochs >= 1
        for epoch in range(full_epochs):
            assert set(ids[epoch * len(expected) : (epoch + 1) * len(expected)]) == expected
    recalls = [int(record) for source, record in ended if source == "recall"]
    assert recalls == list(range(len(recalls)))
    assert recalls


def test_labels_spell_the_records_that_end(tiny_corpus, byte_tokenizer):
    texts = {
        (record.source, record.id): record.text
        for kind in ("natural", "code")
        for record in tiny_corpus.records(kind, validation=False)
    }
    stream = make(tiny_corpus, byte_tokenizer)
    labels, names = [], []
    for _ in range(30):
        batch = stream.next_batch()
        labels += batch.labels_BT.flatten().tolist()
        names += batch.records
    spelled = "".join("\0" if token == 2 else chr(token) for token in labels).split("\0")
    for name, document in zip(names, spelled, strict=False):
        if name in texts:
            assert byte_tokenizer.decode(map(ord, document)) == texts[name]


def test_text_bytes_count_the_labels(tiny_corpus, byte_tokenizer):
    batch = make(tiny_corpus, byte_tokenizer).next_batch()
    assert batch.text_bytes == int((batch.labels_BT >= 3).sum())
    assert batch.tokens == batch.labels_BT.numel() == 66


def test_position_is_small_json(corpus, bpe):
    stream = build_stream(DataSection(seq_len=256, source_prefetch=0, num_workers=0), 10**9, bpe, 4)
    for _ in range(5):
        stream.next_batch()
        assert len(json.dumps(stream.state_dict())) < 1500


def test_shares_are_met_in_tokens(corpus, bpe):
    stream = build_stream(
        DataSection(seq_len=512, source_prefetch=0, num_workers=0, code_ratio=0.3, synthetic_ratio=0.1), 0, bpe, 16
    )
    for _ in range(25):
        stream.next_batch()
    counts = stream.state_dict()["mixture"]["counts"]
    assert sum(counts) == 25 * 16 * 512
    for count, share in zip(counts, (0.6, 0.3, 0.1 / 3, 0.1 / 3, 0.1 / 3), strict=True):
        assert count / sum(counts) == pytest.approx(share, abs=0.015)


def test_share_of_zero_leaves_the_source_out(corpus, bpe):
    stream = build_stream(
        DataSection(seq_len=64, source_prefetch=0, num_workers=0, code_ratio=0.9, synthetic_ratio=0.1), 0, bpe, 2
    )
    assert list(stream.state_dict()["sources"]) == ["code", "arithmetic", "parity", "recall"]


def test_seed_changes_the_order(corpus, bpe):
    batches = [
        build_stream(DataSection(seq_len=64, source_prefetch=0, num_workers=0), seed, bpe, 2).next_batch()
        for seed in (0, 1, 0)
    ]
    assert not torch.equal(batches[0].input_ids_BT, batches[1].input_ids_BT)
    assert torch.equal(batches[0].input_ids_BT, batches[2].input_ids_BT)


def test_position_of_another_mixture_seed_or_tokenizer_is_refused(tiny_corpus, byte_tokenizer, bpe):
    state = snapshot(make(tiny_corpus, byte_tokenizer))
    others = [
        make(tiny_corpus, bpe),
        make(tiny_corpus, byte_tokenizer, seed=1),
        make(tiny_corpus, byte_tokenizer, natural=0.6),
    ]
    for other in others:
        with pytest.raises(DataError, match="belongs to another corpus"):
            go_to(other, state)


def test_position_survives_another_row_length_and_batch_size(tiny_corpus, byte_tokenizer):
    first = make(tiny_corpus, byte_tokenizer, rows=2, length=30)
    second = make(tiny_corpus, byte_tokenizer, rows=3, length=20)
    first.next_batch()
    go_to(second, snapshot(first))
    assert first.next_batch().labels_BT.flatten().tolist() == second.next_batch().labels_BT.flatten().tolist()


def test_shares_above_one_are_refused(bpe):
    with pytest.raises(ConfigError, match="--code-ratio"):
        build_stream(DataSection(seq_len=64, code_ratio=0.8, synthetic_ratio=0.3), 0, bpe, 1)


class Failing(GeneratorSource):
    def __next__(self):
        if self._index == 4:
            raise OSError("disk gone")
        return super().__next__()


def test_error_of_a_source_crosses_the_thread(byte_tokenizer):
    groups = [Group(1.0, (Feed(Failing("parity", 0), byte_tokenizer),))]
    stream = BatchStream(groups, byte_tokenizer, StreamSettings(1, 50, prefetch=2))
    with pytest.raises(DataThreadError, match="disk gone"):
        take(stream, 1000)
    stream.close()


@pytest.mark.parametrize("workers", [0, 3])
def test_close_joins_the_threads_and_the_stream_can_go_on(tiny_corpus, byte_tokenizer, whole, workers):
    before = set(threading.enumerate())
    stream = make(tiny_corpus, byte_tokenizer, 4, workers)
    seen = take(stream, 3)
    stream.close()
    assert set(threading.enumerate()) <= before
    assert seen + take(stream, 2) == whole[0][:5]
    stream.close()


def test_every_near_duplicate_is_left_out_and_counted(tiny_corpus, byte_tokenizer):
    gate, duplicates, kept, dropped = NoSpam(), Duplicates(7), [], Counter()
    stream = remote_stream(tiny_corpus, byte_tokenizer, [Memory("red")], gate=gate, dedup_window=7, shares=(1.0,))
    ended = records_of(take(stream, 60), "red")
    tally, current = tallied(stream), stream.state_dict()["document"]
    stream.close()
    source = WindowSource(Memory("red"), 0, size=SIZE, pause=SOON)
    while len(kept) < len(ended) + (current["source"] == "red"):
        assert source.ready(5)
        verdict = gate.examine(record := next(source))
        twice = verdict.reason is None and duplicates.seen(verdict.signature)
        if reason := "near_duplicate" if twice else verdict.reason:
            dropped[reason] += 1
        else:
            kept.append(record.id)
    source.close()
    assert kept[: len(ended)] == ended
    assert {reason: tally[f"data_dropped_{reason}"] for reason in dropped} == dropped
    assert set(dropped) == {"near_duplicate", "spam"}
