import itertools

import numpy as np
import pytest
import torch

from sigma.data.validation import Validation


@pytest.mark.parametrize("length", [7, 64, 512])
def test_every_text_token_is_scored_exactly_once(tiny_corpus, byte_tokenizer, length):
    validation = Validation(byte_tokenizer, tiny_corpus)
    expected = sorted(
        token for record in validation.documents() for token in byte_tokenizer.encode(record.text).tolist()
    )
    batches = list(validation.batches(3, length))
    scored = [token for batch in batches for token in batch.labels_BT[batch.labels_BT != -100].tolist()]
    assert sorted(scored) == expected
    assert sum(batch.tokens for batch in batches) == len(expected)


def test_windows_overlap_by_one_token_and_the_first_opens_with_bos(bpe, corpus):
    validation = Validation(bpe, corpus)
    first = validation.documents()[0]
    ids = [1, *bpe.encode(first.text).tolist()]
    windows = [
        window.tolist() for window, _ in zip(validation.windows(100), range(-(-(len(ids) - 1) // 100)), strict=False)
    ]
    assert [windows[0][0], *(token for window in windows for token in window[1:])] == ids
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(windows))


def test_bytes_are_exactly_those_of_the_natural_held_out_text(bpe, corpus):
    validation = Validation(bpe, corpus)
    batches = list(validation.batches(16, 512))
    assert sum(batch.text_bytes for batch in batches) == len(validation.text()) >= 1_000_000
    assert sum(int(batch.label_bytes_BT.sum()) for batch in batches) == len(validation.text())
    assert {record.source for record in validation.documents()} == {
        row["name"] for row in corpus.provenance["archives"] if row["kind"] == "natural"
    }


def test_rows_are_consistent_segments(bpe, corpus):
    for batch in Validation(bpe, corpus).batches(5, 200, max_tokens=9000):
        rows, length = batch.input_ids_BT.shape
        padding = batch.labels_BT == -100
        assert torch.equal(padding, batch.segments_BT == -1)
        assert torch.equal(padding, batch.positions_BT == -1)
        assert (batch.label_bytes_BT[padding] == 0).all()
        starts = batch.cu_seqlens.tolist()
        assert starts[-1] == rows * length
        opens = (batch.positions_BT.flatten() == 0).nonzero().flatten().tolist()
        assert set(opens) <= set(starts)
        inputs, labels = batch.input_ids_BT.flatten(), batch.labels_BT.flatten()
        for start, end in itertools.pairwise(starts):
            assert len(set(batch.segments_BT.flatten()[start:end].tolist())) == 1
            if start in opens:
                assert batch.positions_BT.flatten()[start:end].tolist() == list(range(end - start))
                assert torch.equal(labels[start : end - 1], inputs[start + 1 : end])


@pytest.mark.parametrize("limit", [1, 300, 5000])
def test_subset_is_fixed_and_of_the_asked_size(bpe, corpus, limit):
    validation = Validation(bpe, corpus)
    first, second = (list(validation.batches(4, 128, max_tokens=limit)) for _ in range(2))
    assert sum(batch.tokens for batch in first) == limit
    assert all(torch.equal(a.labels_BT, b.labels_BT) for a, b in zip(first, second, strict=True))


def test_subset_begins_the_full_order_and_mixes_sources(bpe, corpus):
    validation = Validation(bpe, corpus)
    subset = np.concatenate([window[1:] for window in validation.windows(256, max_tokens=1000)])
    full = np.concatenate([window[1:] for window, _ in zip(validation.windows(256), range(9), strict=False)])
    np.testing.assert_array_equal(subset, full[:1000])
    assert len({record.source for record in validation.documents()[:20]}) >= 4
