"""A mini-batch's sequences → ranks and micro-batches, deterministically, so that every rank computes the same plan.

Three layouts:

    padded   each sequence in a row of its own, right-padded; under a causal mask no token sees what pads its row
    shared   a group's completions in one row behind their prompt, which is computed once; the mask keeps them apart,
             and only attention pads rows (`learn/policy/row_attention.py`); padded where no two completions share a row
    packed   all one after another in a single row whose position ids restart, without a mask, for kernels that know
             sequences of variable length (flash attention)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyncrl.learn.policy.row_attention import Rows
from asyncrl.learn.policy.varlen_attention import Segments
from asyncrl.learn.update.mini_batches import ActionTokens, MiniBatch

Layout = Literal["padded", "shared", "packed"]
LEAST_OF_WIDTH: dict[Layout, float] = {"padded": 0.7, "shared": 0.5, "packed": 0.0}
"""A row shorter than this part of its micro-batch's width goes into another one: padding would cost more than a pass.
Padded rows at 0.8 made the passes cost more again (`bench/pipeline/learner.py`, the quickstart's model)."""

Row = list[int]
"""Sequences that stand behind one prompt."""
Plan = list[list[list[int]]]
"""[rank][micro-batch] → rows; an empty list is a micro-batch that only keeps the rank in step."""


@dataclass(frozen=True)
class MicroBatch:
    """The input of one forward and backward pass on one rank: N rows of S tokens, T action tokens."""

    input_ids: Tensor
    """[N, S] int64; shared and packed: N = 1."""
    position_ids: Tensor
    """[N, S] int64, from 0 in each sequence; padding counts on, lest a new sequence be seen there."""
    attention_mask: Tensor | None
    """shared: [R, 1, L, L] bool, who sees whom in each of R rows of at most L tokens. Else None."""
    indices: Tensor
    """[T] int64 into the flattened [N · S]: the position whose output predicts the action token."""
    actions: ActionTokens
    """[T]"""
    num_tokens: int
    """Of all rows; the other positions are padding."""
    is_idle: bool = False
    """It holds one token of no sequence, of weight 0, to keep the rank in step."""
    segments: Segments | None = None
    """packed: where the sequences lie."""
    rows: Rows | None = None
    """shared: where the rows lie."""
    is_last: bool = False
    """Of its mini-batch, on every rank at once."""

    def to(self, device: torch.device) -> MicroBatch:
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            attention_mask=None if self.attention_mask is None else self.attention_mask.to(device, non_blocking=True),
            indices=self.indices.to(device, non_blocking=True),
            actions=self.actions.to(device),
            segments=None if self.segments is None else self.segments._replace(starts=self.segments.starts.to(device)),
            rows=None if self.rows is None else Rows(*(index.to(device) for index in self.rows)),
        )


def own_micro_batches(
    mini_batch: MiniBatch,
    sequences: Sequence[int],
    layout: Layout,
    hidden_size: int,
    budget: int,
    rank: int,
    num_ranks: int,
) -> Iterator[MicroBatch]:
    """One rank's share of `sequences`, on the CPU; the same micro-batches whenever it is asked again.

    Args:
        hidden_size: of the model: it says what attention costs beside the matrix products.
        budget: tokens of one micro-batch, padding included.
    """
    rows = rows_of(mini_batch, sequences, layout, num_ranks, hidden_size, budget)
    if layout == "shared" and all(len(row) == 1 for row in rows):
        layout = "padded"  # moving tokens to rows and a mask cost more than rows that are padded to what is alike
    lengths = [num_tokens_of(mini_batch, row) for row in rows]
    costs = [cost_of(length, hidden_size) for length in lengths]
    own = plan_micro_batches(lengths, costs, num_ranks, budget, layout)[rank]
    for position, chosen in enumerate(own):
        micro_batch = build_micro_batch(mini_batch, [rows[row] for row in chosen], layout)
        yield replace(micro_batch, is_last=position == len(own) - 1)


def rows_of(
    mini_batch: MiniBatch, sequences: Sequence[int], layout: Layout, num_ranks: int, hidden_size: int, budget: int
) -> list[Row]:
    """Which sequences share a row: with `shared` those of a group, up to `best_row_tokens` and the budget.

    A group is cut further where there would be fewer rows than ranks.
    """
    if layout != "shared":
        return [[sequence] for sequence in sequences]
    most = math.ceil(len(sequences) / num_ranks)
    rows: list[Row] = []
    num_tokens, limit, group = 0, 0, -1
    for sequence in sequences:
        added = len(mini_batch.completions[sequence])
        if mini_batch.group_ids[sequence] != group or num_tokens + added > limit or len(rows[-1]) == most:
            rows.append([])
            num_tokens, group = len(mini_batch.prompts[sequence]), mini_batch.group_ids[sequence]
            limit = min(best_row_tokens(num_tokens, hidden_size), budget)
        rows[-1].append(sequence)
        num_tokens += added
    return rows


def best_row_tokens(prompt_tokens: int, hidden_size: int) -> int:
    """Of a row whose completions share a prompt of P tokens: P + √(P · (12·h + P)).

    The more completions share a prompt, the fewer tokens there are, and the more attention each of them costs. Behind a
    prompt r tokens of completions cost ((P + r) · 24h² + (P + r)² · 4h) / r each, matrix products and attention under a
    mask, which is least at r = √(P · (6h + P)). Measured, small rows cost more than their operations: twice the 6 was
    best of 1 to 24 for h = 128 and P = 5 (`bench/pipeline/learner.py`).
    """
    return prompt_tokens + math.isqrt(prompt_tokens * (12 * hidden_size + prompt_tokens))


def num_tokens_of(mini_batch: MiniBatch, row: Row) -> int:
    """Of a row: its prompt once, and its completions."""
    return len(mini_batch.prompts[row[0]]) + sum(len(mini_batch.completions[sequence]) for sequence in row)


def cost_of(num_tokens: int, hidden_size: int) -> float:
    """Of a row, in tokens without attention.

    A token's matrix products take about 24 · hidden² operations, causal attention 2 · hidden · (tokens of the row).
    """
    return num_tokens + num_tokens**2 / (12 * hidden_size)


def plan_micro_batches(
    lengths: Sequence[int], costs: Sequence[float], num_ranks: int, budget: int, layout: Layout
) -> Plan:
    """Balance rows over ranks by their costs, then fill each rank's micro-batches up to the budget.

    Ranks are balanced by longest-processing-time-first (Graham 1969: within 4/3 of the best), micro-batches filled by
    first-fit decreasing. FSDP's collectives need every rank to run the same number of micro-batches, so the ranks with
    fewer get empty ones, and each begins with its dearest, so that those of one turn are alike. A row over the budget
    has a micro-batch of its own. Where rows are padded, those of a micro-batch are alike in length.

    Args:
        lengths: tokens of each row.
        costs: of each row, rising with its tokens.
        num_ranks: learner ranks.
        budget: tokens of one micro-batch, padding included.
        layout: how the tokens are counted: padded = rows · longest, else the sum.
    """
    loads = [(0.0, rank) for rank in range(num_ranks)]
    per_rank: list[list[int]] = [[] for _ in range(num_ranks)]
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        load, rank = heapq.heappop(loads)
        per_rank[rank].append(row)
        heapq.heappush(loads, (load + costs[row], rank))
    plan = [_fill(rows, lengths, budget, layout) for rows in per_rank]
    for micro_batches in plan:
        micro_batches.sort(key=lambda chosen: -sum(costs[row] for row in chosen))
    num_micro_batches = max(len(micro_batches) for micro_batches in plan)
    return [micro_batches + [[]] * (num_micro_batches - len(micro_batches)) for micro_batches in plan]


def _fill(rows: list[int], lengths: Sequence[int], budget: int, layout: Layout) -> list[list[int]]:
    """First fit; `rows` come longest first, so a padded micro-batch is as wide as its first one."""
    micro_batches: list[list[int]] = []
    for row in rows:
        for chosen in micro_batches:
            if lengths[row] < LEAST_OF_WIDTH[layout] * lengths[chosen[0]]:
                continue
            if layout == "padded":
                num_tokens = lengths[chosen[0]] * (len(chosen) + 1)
            else:
                num_tokens = sum(lengths[other] for other in chosen) + lengths[row]
            if num_tokens <= budget:
                chosen.append(row)
                break
        else:
            micro_batches.append([row])
    return micro_batches


def build_micro_batch(mini_batch: MiniBatch, rows: list[Row], layout: Layout) -> MicroBatch:
    """Lay the given rows out; an empty list gives one token of weight 0."""
    if not rows:
        return _idle_micro_batch(layout)
    laid = [_lay_out(mini_batch, row) for row in rows]
    lengths = np.array([len(row.token_ids) for row in laid])
    width = lengths.max()
    attention_mask, segments, places = None, None, None
    if layout == "padded":
        starts = np.arange(len(rows)) * width
        input_ids = _padded([row.token_ids for row in laid], width)
        position_ids = np.tile(np.arange(width), (len(rows), 1))
    else:
        starts = np.cumsum(lengths) - lengths
        input_ids = np.concatenate([row.token_ids for row in laid])[None]
        position_ids = np.concatenate([row.position_ids for row in laid])[None]
        if layout == "packed":
            segments = Segments(torch.from_numpy(np.append(starts, lengths.sum()).astype(np.int32)), int(width))
        else:
            branches = torch.from_numpy(_padded([row.branches for row in laid], width, fill=-1))
            attention_mask = branch_mask(branches)
            places = rows_of_lengths(lengths)
    sequences = [sequence for row in rows for sequence in row]
    actions = [np.arange(mini_batch.offsets[i], mini_batch.offsets[i + 1]) for i in sequences]
    return MicroBatch(
        torch.from_numpy(input_ids.astype(np.int64)),
        torch.from_numpy(position_ids.astype(np.int64)),
        attention_mask,
        torch.from_numpy(np.concatenate([start + row.predictors for start, row in zip(starts, laid, strict=True)])),
        mini_batch.actions.select(torch.from_numpy(np.concatenate(actions))),
        num_tokens=int(lengths.sum()),
        segments=segments,
        rows=places,
    )


class _LaidOut(NamedTuple):
    """One row of L tokens with T action tokens."""

    token_ids: NDArray[np.int32]
    """[L]"""
    position_ids: NDArray[np.int64]
    """[L]"""
    branches: NDArray[np.int64]
    """[L] 0 = the prompt, k = the k-th completion."""
    predictors: NDArray[np.int64]
    """[T] the position whose output predicts the action token."""


def _lay_out(mini_batch: MiniBatch, row: Row) -> _LaidOut:
    prompt = mini_batch.prompts[row[0]]
    completions = [mini_batch.completions[sequence] for sequence in row]
    lengths = [len(completion) for completion in completions]
    starts = len(prompt) + np.cumsum(lengths) - lengths
    predictors = []
    for sequence, start in zip(row, starts, strict=True):
        place = mini_batch.positions[mini_batch.offsets[sequence] : mini_batch.offsets[sequence + 1]]
        # The output at a position predicts the next token; a completion's first is predicted by the prompt's last.
        predictors.append(np.where(place == 0, len(prompt) - 1, start + place - 1))
    return _LaidOut(
        np.concatenate([prompt, *completions]),
        np.concatenate([np.arange(len(prompt)), *(len(prompt) + np.arange(length) for length in lengths)]),
        np.repeat(np.arange(len(row) + 1), [len(prompt), *lengths]),
        np.concatenate(predictors),
    )


def _padded(rows: list[NDArray[Any]], width: int, fill: int = 0) -> NDArray[Any]:
    return np.stack([np.pad(row, (0, width - len(row)), constant_values=fill) for row in rows])


def rows_of_lengths(lengths: NDArray[np.int64]) -> Rows:
    """Tokens one after another, and as many places for each row as the longest has."""
    is_token = np.arange(lengths.max()) < lengths[:, None]
    token_at = np.where(is_token, np.cumsum(is_token).reshape(is_token.shape) - 1, 0)
    return Rows(torch.from_numpy(token_at.ravel()), torch.from_numpy(np.flatnonzero(is_token)))


def branch_mask(branches: Tensor) -> Tensor:
    """[N, S] branches, −1 = padding → [N, 1, S, S] bool: a token sees the prompt and its own completion up to itself.

    Padding sees padding, since a token that sees nothing would have no softmax.
    """
    seen, by = branches[:, None, None, :], branches[:, None, :, None]
    return ((seen == by) | ((seen == 0) & (by > 0))).tril()


def _idle_micro_batch(layout: Layout) -> MicroBatch:
    zero = torch.zeros(1, dtype=torch.int64)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool) if layout == "shared" else None
    whole = torch.zeros(1, 0, dtype=torch.int32)
    actions = ActionTokens(zero, zero.float(), zero, zero, zero, zero.float(), weights=zero.float(), supports=whole)
    segments = Segments(torch.tensor([0, 1], dtype=torch.int32), 1) if layout == "packed" else None
    rows = Rows(zero, zero) if layout == "shared" else None
    return MicroBatch(zero[None], zero[None], mask, zero, actions, 0, is_idle=True, segments=segments, rows=rows)
