"""A packed micro-batch cut among the ranks that compute it together (`learn/policy/context_parallel.py`)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from asyncrl.learn.policy.varlen_attention import Segments
from asyncrl.learn.update.packing import MicroBatch


class RowPart(NamedTuple):
    """S/C tokens of a row of S, and K of its T action tokens and one more."""

    input_ids: Tensor
    """[1, S/C] int64."""
    position_ids: Tensor
    """[1, S/C] int64, as in the whole row."""
    segments: Segments
    """Of the whole row."""
    indices: Tensor
    """[K + 1] int64 into the part. The last stands for nothing: a part may have no action token, and every rank has to
    go through the output head."""
    targets: Tensor
    """[K + 1] int64."""
    supports: Tensor
    """[K + 1, …] int32, as in `ActionTokens`."""
    is_here: Tensor
    """[T] bool: which of the micro-batch's action tokens these K are."""


def row_part(micro_batch: MicroBatch, rank: int, num_parts: int) -> RowPart:
    """The `rank`-th of `num_parts` equal parts; what would make them unequal is padded by a sequence of its own."""
    assert micro_batch.segments is not None, "only a packed row can be cut"
    starts, longest = micro_batch.segments
    num_tokens = micro_batch.input_ids.shape[1]
    num_padding = -num_tokens % num_parts
    size = (num_tokens + num_padding) // num_parts
    begin = rank * size
    positions = torch.arange(num_padding, device=micro_batch.position_ids.device)[None]
    if num_padding:
        starts = torch.cat([starts, starts[-1:] + num_padding])
    is_here = (micro_batch.indices >= begin) & (micro_batch.indices < begin + size)
    actions = micro_batch.actions
    return RowPart(
        pad(micro_batch.input_ids, (0, num_padding))[:, begin : begin + size],
        torch.cat([micro_batch.position_ids, positions], 1)[:, begin : begin + size],
        Segments(starts, max(longest, num_padding)),
        pad(micro_batch.indices[is_here] - begin, (0, 1)),
        pad(actions.targets[is_here], (0, 1)),
        pad(actions.supports[is_here], (0, 0, 0, 1)),
        is_here,
    )
