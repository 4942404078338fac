"""A mini-batch's sequences → ranks and micro-batches, deterministically, so that every rank computes the same plan.

Two layouts: `padded` puts each sequence in a row, right-padded, with an attention mask (sdpa); `packed` puts them one
after another in a single row whose position ids restart, without a mask (flash attention's variable-length kernels).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from asyncrl.learn.update.mini_batches import ActionTokens, MiniBatch

Layout = Literal["padded", "packed"]
Plan = list[list[list[int]]]
"""[rank][micro-batch] → sequences; an empty list is a micro-batch that only keeps the rank in step."""


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward and backward pass on one rank: N rows of S tokens, T action tokens."""

    input_ids: Tensor
    """[N, S] int64; packed: N = 1."""
    position_ids: Tensor
    """[N, S] int64, from 0 in each sequence."""
    attention_mask: Tensor | None
    """[N, S] int64, 1 = token, 0 = padding; None when packed."""
    indices: Tensor
    """[T] int64 into the flattened [N · S]: the position whose output predicts the action token."""
    actions: ActionTokens
    """[T]"""
    is_idle: bool = False
    """It holds one token of no sequence, of weight 0, to keep the rank in step."""

    def to(self, device: torch.device) -> MicroBatch:
        return MicroBatch(
            self.input_ids.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            None if self.attention_mask is None else self.attention_mask.to(device, non_blocking=True),
            self.indices.to(device, non_blocking=True),
            self.actions.to(device),
            self.is_idle,
        )


def plan_micro_batches(lengths: dict[int, int], num_ranks: int, budget: int, layout: Layout) -> Plan:
    """Balance sequences over ranks, then fill each rank's micro-batches up to the budget.

    Ranks are balanced by longest-processing-time-first (Graham 1969: within 4/3 of the best), micro-batches filled by
    first-fit decreasing. FSDP's collectives need every rank to run the same number of micro-batches, so the ranks with
    fewer get empty ones. A sequence over the budget has a micro-batch of its own.

    Args:
        lengths: sequence → number of tokens (prompt and completion).
        num_ranks: learner ranks.
        budget: tokens of one micro-batch, padding included.
        layout: how the tokens are counted: padded = rows · longest, packed = the sum.
    """
    loads = [(0, rank) for rank in range(num_ranks)]
    per_rank: list[list[int]] = [[] for _ in range(num_ranks)]
    for sequence in sorted(lengths, key=lambda sequence: (-lengths[sequence], sequence)):
        load, rank = heapq.heappop(loads)
        per_rank[rank].append(sequence)
        heapq.heappush(loads, (load + lengths[sequence], rank))
    plan = [_fill(sequences, lengths, budget, layout) for sequences in per_rank]
    num_micro_batches = max(len(micro_batches) for micro_batches in plan)
    return [micro_batches + [[]] * (num_micro_batches - len(micro_batches)) for micro_batches in plan]


def _fill(sequences: list[int], lengths: dict[int, int], budget: int, layout: Layout) -> list[list[int]]:
    """First fit; `sequences` come longest first, so a padded micro-batch is as wide as its first one."""
    micro_batches: list[list[int]] = []
    for sequence in sequences:
        for chosen in micro_batches:
            if layout == "padded":
                num_tokens = lengths[chosen[0]] * (len(chosen) + 1)
            else:
                num_tokens = sum(lengths[other] for other in chosen) + lengths[sequence]
            if num_tokens <= budget:
                chosen.append(sequence)
                break
        else:
            micro_batches.append([sequence])
    return micro_batches


def build_micro_batch(mini_batch: MiniBatch, sequences: list[int], layout: Layout) -> MicroBatch:
    """Lay the given sequences out; an empty list gives one token of weight 0."""
    if not sequences:
        return _idle_micro_batch(layout)
    rows = [np.concatenate([mini_batch.prompts[i], mini_batch.completions[i]]) for i in sequences]
    lengths = np.array([len(row) for row in rows])
    positions = [np.arange(length) for length in lengths]
    if layout == "packed":
        starts = np.cumsum(lengths) - lengths
        input_ids, position_ids = np.concatenate(rows)[None], np.concatenate(positions)[None]
        attention_mask = None
    else:
        width = lengths.max()
        starts = np.arange(len(rows)) * width
        input_ids = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
        position_ids = np.tile(np.arange(width), (len(rows), 1))
        attention_mask = torch.from_numpy((position_ids < lengths[:, None]).astype(np.int64))
    actions = [np.arange(mini_batch.offsets[i], mini_batch.offsets[i + 1]) for i in sequences]
    # The output at a position predicts the next token: a completion's first token is predicted by the prompt's last.
    before = [start + len(mini_batch.prompts[i]) - 1 for start, i in zip(starts, sequences, strict=True)]
    indices = [at + mini_batch.positions[chosen] for at, chosen in zip(before, actions, strict=True)]
    return MicroBatch(
        torch.from_numpy(input_ids.astype(np.int64)),
        torch.from_numpy(position_ids),
        attention_mask,
        torch.from_numpy(np.concatenate(indices)),
        mini_batch.actions.select(torch.from_numpy(np.concatenate(actions))),
    )


def _idle_micro_batch(layout: Layout) -> MicroBatch:
    zero = torch.zeros(1, dtype=torch.int64)
    mask = torch.ones(1, 1, dtype=torch.int64) if layout == "padded" else None
    actions = ActionTokens(zero, zero.float(), zero, zero, zero.float(), weights=zero.float())
    return MicroBatch(zero[None], zero[None], mask, zero, actions, is_idle=True)
