"""Which positions of a batch belong together: packed documents, padded rows, a cached past.

Built once per forward and shared by all layers: attention reads the mask, the scan `state_valid_BT` and `cu_seqlens`,
the router `valid_BT`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SequenceLayout:
    """How the `T` query positions of a forward see the `S = past + T` positions behind them."""

    position_BT: Tensor
    """Position of every query, for the rotary key only."""
    mask_B1TS: Tensor | None = None
    """True where a query sees a key; None when the plain causal rule says it all."""
    valid_BT: Tensor | None = None
    """False at padding, which counts in no statistic; None when not known or not there."""
    state_valid_BT: Tensor | None = None
    """The same where padding shares a recurrent state with tokens and must not touch it; else None."""
    cu_seqlens: Tensor | None = None
    """Starts of the packed sequences in the flattened B*T tokens, int32 [n+1]; None when every row is one sequence."""


def plain_layout(attention_mask_BS: Tensor | None, position_BT: Tensor, past: int) -> SequenceLayout:
    """Rows of one sequence each, perhaps padded (`attention_mask` 0), perhaps after `past` cached tokens.

    Asks the device whether the mask hides anything, as transformers does: pass no mask when training. Raises ValueError
    for a mask of another shape.
    """
    (batch, length), device = position_BT.shape, position_BT.device
    if attention_mask_BS is not None and attention_mask_BS.shape != (batch, past + length):
        shape = list(attention_mask_BS.shape)
        raise ValueError(f"attention_mask must have shape {[batch, past + length]} (past and new tokens), not {shape}")
    if attention_mask_BS is None or bool(attention_mask_BS.all()):
        mask = causal_mask(length, past, device)[None, None] if past and length > 1 else None
        return SequenceLayout(position_BT, mask)
    valid_BS = attention_mask_BS.bool()
    mask_BTS = causal_mask(length, past, device) & valid_BS[:, None]
    # a padded query sees itself: a softmax over nothing has no value
    mask_BTS = mask_BTS | torch.eye(length, past + length, dtype=torch.bool, device=device).roll(past, 1)
    return SequenceLayout(position_BT, mask_BTS[:, None], valid_BS[:, past:], valid_BS[:, past:])


def packed_layout(segment_ids_BT: Tensor | None, cu_seqlens: Tensor | None, position_BT: Tensor) -> SequenceLayout:
    """Rows that hold several documents; one description is derived from the other when it is missing.

    A document never goes over a row. Deriving `cu_seqlens` waits for the device, deriving the segments does not.
    Raises ValueError when both are missing.
    """
    batch, length = position_BT.shape
    valid_BT = None if segment_ids_BT is None else segment_ids_BT >= 0
    if cu_seqlens is None:
        if segment_ids_BT is None:
            raise ValueError("a packed layout needs segment_ids or cu_seqlens")
        cu_seqlens = cu_seqlens_of(segment_ids_BT)
    if cu_seqlens.numel() == batch + 1:  # as many sequences as rows: each row is one
        return SequenceLayout(position_BT, valid_BT=valid_BT)
    if segment_ids_BT is None:
        token = torch.arange(batch * length, device=position_BT.device, dtype=torch.int32)
        segment_ids_BT = torch.bucketize(token, cu_seqlens, right=True).view(batch, length)
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    mask_BTS = same_BTS & causal_mask(length, 0, position_BT.device)
    return SequenceLayout(position_BT, mask_BTS[:, None], valid_BT, cu_seqlens=cu_seqlens)


def causal_mask(length: int, past: int, device: torch.device) -> Tensor:
    """`[length, past + length]`, True where key position <= query position."""
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)


def cu_seqlens_of(segment_ids_BT: Tensor) -> Tensor:
    """Starts of the runs of equal ids, a row always starting a new run, then the total: int32 [n+1]."""
    starts_BT = torch.ones_like(segment_ids_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    starts = starts_BT.flatten().nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([segment_ids_BT.numel()])]).int()
