from __future__ import annotations

import pytest
import torch

from sigma.model.layout import cu_seqlens_of, packed_layout, plain_layout


def positions(batch, length, past=0):
    return torch.arange(past, past + length).expand(batch, length)


SEGMENTS = torch.tensor([[0, 0, 1, 1, -1], [0, 1, 1, 2, 2]], dtype=torch.int32)


def test_whole_rows_need_no_mask():
    layout = plain_layout(torch.ones(2, 5, dtype=torch.long), positions(2, 5), 0)
    assert (layout.mask_B1TS, layout.valid_BT, layout.state_valid_BT, layout.cu_seqlens) == (None,) * 4


def test_one_new_token_sees_the_whole_past_without_a_mask():
    assert plain_layout(None, positions(2, 1, 4), 4).mask_B1TS is None


def test_several_new_tokens_see_the_past_and_each_other_causally():
    mask = plain_layout(None, positions(2, 2, 3), 3).mask_B1TS
    assert mask[0, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_padding_is_hidden_from_tokens_and_sees_only_itself():
    layout = plain_layout(torch.tensor([[0, 0, 1, 1]]), positions(1, 4), 0)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert layout.mask_B1TS[0, 0].int().tolist() == expected
    assert layout.valid_BT.tolist() == layout.state_valid_BT.tolist() == [[False, False, True, True]]


def test_padding_stays_hidden_when_decoding():
    layout = plain_layout(torch.tensor([[0, 1, 1, 1]]), positions(1, 1, 3), 3)
    assert layout.mask_B1TS[0, 0].int().tolist() == [[0, 1, 1, 1]]
    assert layout.valid_BT.tolist() == [[True]]


@pytest.mark.parametrize("shape", [(1, 3), (2, 4)], ids=["only new tokens", "wrong batch"])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \[1, 4\] \(past and new tokens\)"):
        plain_layout(torch.ones(shape), positions(1, 3, 1), 1)


def test_starts_count_rows_documents_and_padding():
    assert cu_seqlens_of(SEGMENTS).tolist() == [0, 2, 4, 5, 6, 8, 10]
    assert cu_seqlens_of(torch.zeros(2, 3)).tolist() == [0, 3, 6], "the same id in the next row is another document"


@pytest.mark.parametrize("known", ["segments", "starts", "both"])
def test_packed_attention_is_causal_within_each_document(known):
    segments = SEGMENTS if known != "starts" else None
    starts = cu_seqlens_of(SEGMENTS) if known != "segments" else None
    layout = packed_layout(segments, starts, positions(2, 5))
    first = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert layout.mask_B1TS[0, 0].int().tolist() == first
    assert layout.mask_B1TS[1, 0].sum(-1).tolist() == [1, 1, 2, 1, 2]
    assert layout.cu_seqlens.tolist() == [0, 2, 4, 5, 6, 8, 10]
    assert layout.state_valid_BT is None, "packed padding is a sequence of its own"


def test_packed_padding_counts_in_no_statistic():
    layout = packed_layout(SEGMENTS, None, positions(2, 5))
    assert layout.valid_BT.tolist() == [[True, True, True, True, False], [True] * 5]


def test_rows_of_one_document_each_take_the_fast_path():
    layout = packed_layout(torch.zeros(2, 5), None, positions(2, 5))
    assert (layout.mask_B1TS, layout.cu_seqlens) == (None, None)


def test_a_packed_layout_needs_a_description():
    with pytest.raises(ValueError, match="segment_ids or cu_seqlens"):
        packed_layout(None, None, positions(1, 2))
