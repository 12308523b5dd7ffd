import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma.data.packing import BatchBuilder, document_ids

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def pack(lengths, rows, length):
    """All documents packed into batches until they are used up; the last, unfinished batch is filled from a long
    one.
    """
    documents = [document_ids(np.arange(100 * i, 100 * i + n) + 10) for i, n in enumerate(lengths)]
    documents.append(document_ids(np.arange(rows * length) + 2000))
    batches, builder = [], BatchBuilder(rows, length)
    for ids in documents:
        offset = 0
        while offset < len(ids) - 1:
            offset = builder.add(ids, offset)
            if not builder.room:
                batches.append(builder.finish(np.ones(3000, dtype=np.int64)))
                builder = BatchBuilder(rows, length)
    return documents, batches


@given(lengths=LENGTHS, rows=st.integers(1, 3), length=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_every_token_is_predicted_exactly_once_from_the_token_before_it(lengths, rows, length):
    documents, batches = pack(lengths, rows, length)
    expected = [pair for ids in documents[:-1] for pair in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True)]
    found = [
        pair
        for batch in batches
        for pair in zip(batch.input_ids_BT.flatten().tolist(), batch.labels_BT.flatten().tolist(), strict=True)
    ]
    assert found[: len(expected)] == expected


@given(lengths=LENGTHS, rows=st.integers(1, 3), length=st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_segments_are_single_documents_and_agree_with_cu_seqlens(lengths, rows, length):
    _, batches = pack(lengths, rows, length)
    for batch in batches:
        ids, labels = batch.input_ids_BT.flatten(), batch.labels_BT.flatten()
        starts = batch.cu_seqlens.tolist()
        assert starts[0] == 0
        assert starts[-1] == rows * length
        assert batch.cu_seqlens.dtype == batch.segments_BT.dtype == torch.int32
        numbers = torch.empty(rows * length, dtype=torch.int32)
        for start, end in itertools.pairwise(starts):
            assert start // length == (end - 1) // length, "a segment stays inside a row"
            assert torch.equal(labels[start : end - 1], ids[start + 1 : end]), (
                "inside a segment the label is the next input"
            )
            assert 1 not in ids[start + 1 : end], "bos only opens a segment"
            numbers[start:end] = sum(start // length * length <= other < start for other in starts)
        assert torch.equal(numbers.view(rows, length), batch.segments_BT)
        assert (batch.segments_BT[:, 0] == 0).all()


def test_batch_counts_the_bytes_of_its_labels():
    builder = BatchBuilder(1, 7)
    builder.add(document_ids(np.array([7, 8, 9])), 0)  # labels 7 8 9 eos
    builder.add(document_ids(np.array([10, 11, 12])), 0)  # labels 10 11 12, eos is cut off
    byte_length_V = np.arange(20)
    byte_length_V[:3] = 0
    builder.end(("s", "a"))
    batch = builder.finish(byte_length_V)
    assert batch.input_ids_BT.tolist() == [[1, 7, 8, 9, 1, 10, 11]]
    assert batch.labels_BT.tolist() == [[7, 8, 9, 2, 10, 11, 12]]
    assert batch.segments_BT.tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert (batch.text_bytes, batch.tokens, batch.records) == (57, 7, (("s", "a"),))
