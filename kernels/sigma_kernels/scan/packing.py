"""Which step follows which: sequences packed in time, and padding inside a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """For every token of a packed row: the number of its sequence, and that sequence's first and last token."""

    sequence_T: Tensor
    first_T: Tensor
    last_T: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor, steps: int) -> Packing:
        """From int [n + 1] bounds; an empty sequence owns no token."""
        bounds = cu_seqlens.long()
        index = torch.arange(bounds.numel() - 1, device=bounds.device)
        sequence_T = torch.repeat_interleave(index, bounds.diff(), output_size=steps)
        return cls(sequence_T, bounds[:-1][sequence_T], bounds[1:][sequence_T] - 1)


def padded_index(cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """(index_nT, real_nT): where each step of a padded batch of the n sequences lies in the packed row."""
    bounds = cu_seqlens.long()
    lengths = bounds.diff()
    step_T = torch.arange(max(1, int(lengths.max())), device=bounds.device)
    real_nT = step_T < lengths[:, None]
    return torch.where(real_nT, bounds[:-1, None] + step_T, 0), real_nT


def left_of_next(left_BTH: Tensor, valid_BT: Tensor | None) -> Tensor:
    """The left weight of the next valid step of the row; 0 where none follows.

    The last step of a packed sequence gets the weight of the next sequence's first: the masks let nothing read it.
    """
    batch, _, heads = left_BTH.shape
    padded = torch.cat([left_BTH, left_BTH.new_zeros(batch, 1, heads)], 1)
    if valid_BT is None:
        return padded[:, 1:]
    index_BT = neighbours(valid_BT)[0].long()
    return padded.gather(1, index_BT[..., None].expand(-1, -1, heads))


def neighbours(valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """int32 [B, T]: the next valid step after each step, and the last one before it; T where there is none."""
    steps = valid_BT.shape[1]
    own = torch.arange(steps, device=valid_BT.device)
    ahead = torch.where(valid_BT, own, steps).flip(1).cummin(1).values.flip(1)  # the first at or after t
    behind = torch.where(valid_BT, own, -1).cummax(1).values  # the last at or before t
    none = torch.full_like(ahead[:, :1], steps)
    following = torch.cat([ahead[:, 1:], none], 1)
    previous = torch.cat([none, torch.where(behind < 0, steps, behind)[:, :-1]], 1)
    return following.int(), previous.int()


def first_valid(valid_BT: Tensor) -> Tensor:
    """Index of the first valid step of each row (0 when there is none)."""
    return valid_BT.int().argmax(1)


def last_valid(valid_BT: Tensor) -> Tensor:
    """Index of the last valid step of each row (T - 1 when there is none)."""
    return valid_BT.shape[1] - 1 - valid_BT.int().flip(1).argmax(1)
