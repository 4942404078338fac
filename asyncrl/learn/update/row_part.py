"""A packed micro-batch cut among the ranks that compute it together (`learn/policy/context_parallel.py`)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from asyncrl.learn.policy.varlen_attention import Segments
from asyncrl.learn.update.packing import MicroBatch


def row_part(micro_batch: MicroBatch, rank: int, num_parts: int) -> tuple[MicroBatch, Tensor]:
    """The `rank`-th of `num_parts` equal parts; what would make them unequal is padded by a sequence of its own.

    Returns:
        1/num_parts of the row's tokens, with positions and segments as in the whole row, and K of the T action tokens
        and one more. The last stands for nothing: a part may have no action token, and every rank has to go through
        the output head.
        [T] bool: which of the action tokens these K are.
    """
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
    part = replace(
        micro_batch,
        input_ids=pad(micro_batch.input_ids, (0, num_padding))[:, begin : begin + size],
        position_ids=torch.cat([micro_batch.position_ids, positions], 1)[:, begin : begin + size],
        segments=Segments(starts, max(longest, num_padding)),
        indices=pad(micro_batch.indices[is_here] - begin, (0, 1)),
        actions=micro_batch.actions.select(pad(is_here.nonzero()[:, 0], (0, 1))),
    )
    return part, is_here
