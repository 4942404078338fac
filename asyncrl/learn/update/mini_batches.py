"""Batch → mini-batches: the sequences of one optimizer update, flattened, with a loss weight for each token.

The hard guard of the staleness bound stands here: a token with lag > max_staleness gets weight 0 before anything else
looks at it. (The reward of its completion still counts in the group's mean.)

An environment's tokens are in the sequences and nowhere else: loss, guard and metrics never see them.

Legend: N sequences, T sampled ("action") tokens over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyncrl.algorithms.advantage import compute_advantages, gdpo, varies
from asyncrl.algorithms.aggregation import token_weights
from asyncrl.algorithms.overlong import soft_penalty
from asyncrl.algorithms.segments import segment_sum
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.errors import StalenessError
from asyncrl.learn.update.turn_credit import turn_advantages
from asyncrl.types import Batch, Group


@dataclass(frozen=True)
class ActionTokens:
    """What the loss needs of each of T sampled tokens."""

    targets: Tensor
    """[T] int64 token ids."""
    behaviour_logprobs: Tensor
    """[T] float32 log μ."""
    lags: Tensor
    """[T] int64: the step's version − the version that sampled the token."""
    engines: Tensor
    """[T] int64: which of `Batch.engines` sampled it, −1 where that is not known."""
    segment_ids: Tensor
    """[T] int64: the token's sequence, 0 … N − 1 within the mini-batch."""
    advantages: Tensor
    """[T] float32"""
    weights: Tensor
    """[T] float32: share of the token in the mini-batch's loss; 0 = not trained."""
    supports: Tensor
    """[T, K] int32 ids of the tokens that could be sampled, the target first, −1 where there are fewer than K. K = 0:
    the whole vocabulary."""

    @property
    def mask(self) -> Tensor:
        """[T] bool: trained."""
        return self.weights > 0

    def select(self, index: Tensor) -> ActionTokens:
        """The tokens at `index` ([K] int64)."""
        return ActionTokens(*(getattr(self, item.name)[index] for item in fields(self)))

    def to(self, device: torch.device) -> ActionTokens:
        return ActionTokens(*(getattr(self, item.name).to(device, non_blocking=True) for item in fields(self)))


@dataclass(frozen=True)
class MiniBatch:
    """N sequences (prompt + completion) that share one optimizer update."""

    prompts: list[NDArray[np.int32]]
    """[N] arrays of prompt token ids."""
    completions: list[NDArray[np.int32]]
    """[N] arrays of token ids, an environment's among them."""
    positions: NDArray[np.int64]
    """[T] place of each action token in its completion."""
    offsets: NDArray[np.int64]
    """[N + 1]: sequence i has the action tokens offsets[i] … offsets[i + 1] − 1."""
    group_ids: NDArray[np.int64]
    """[N] ascending; the sequences of a group have the same prompt."""
    actions: ActionTokens
    """[T], sequence after sequence."""

    @property
    def trained_sequences(self) -> list[int]:
        """Sequences with at least one trained token; the others need no forward pass."""
        return self.actions.segment_ids[self.actions.mask].unique().tolist()


def token_lags(batch: Batch) -> NDArray[np.int64]:
    """[T] lag of each sampled token of the batch: batch.step − the version that sampled it.

    Raises:
        StalenessError: a token is from a version later than the step that consumes it.
    """
    versions = np.concatenate([group.versions[group.sampled] for group in batch.groups]).astype(np.int64)
    lags = batch.step - versions
    if lags.min() < 0:
        raise StalenessError(
            f"step {batch.step} was given {int((lags < 0).sum())} tokens of later versions, up to {versions.max()}: "
            "they belong to another timeline"
        )
    return lags


def mini_batches(
    batch: Batch,
    algorithm: AlgorithmConfig,
    max_staleness: int,
    mini_batch_size: int,
    max_tokens: int,
    penalties: Tensor | None = None,
    term_weights: Mapping[str, float] | None = None,
) -> list[MiniBatch]:
    """The batch's groups in order, `mini_batch_size` at a time, as flat CPU tensors.

    Advantages are computed over the whole batch, loss weights over each mini-batch.

    Args:
        batch: every logprob finite.
        algorithm: advantage, aggregation, and which completions are left out.
        max_staleness: η.
        mini_batch_size: prompts of one update.
        max_tokens: the longest completion that is sampled, for overlong=penalty and aggregation=sequence_sum.
        penalties: [N] taken from the rewards, after it is known which groups have zero variance.
        term_weights: of each reward term by its label, for advantage=gdpo.

    Raises:
        StalenessError: as in `token_lags`.
    """
    flat = _flatten(batch)
    rewards = torch.from_numpy(np.concatenate([group.rewards for group in batch.groups]))
    if algorithm.overlong == "penalty":
        rewards = rewards + soft_penalty(flat.lengths, max_tokens, algorithm.overlong_buffer_tokens)
    weights = {label: weight for label, weight in (term_weights or {}).items() if weight != 0}
    compared = _term_scores(batch.groups, weights) if algorithm.advantage == "gdpo" else rewards[:, None]
    mask = (flat.lags <= max_staleness) & _to_train(batch, compared, flat.group_ids, algorithm)[flat.sequence_ids]
    if penalties is not None:
        rewards = rewards - penalties
    num_trained = segment_sum(mask.long(), flat.sequence_ids, len(rewards))
    if algorithm.credit == "turn":
        advantages = turn_advantages(batch.groups, rewards, mask, algorithm)
    elif algorithm.advantage == "gdpo":
        by_sequence = gdpo(compared, torch.tensor([*weights.values()]), flat.group_ids, num_trained)
        advantages = by_sequence.float()[flat.sequence_ids]
    else:
        by_sequence = compute_advantages(algorithm.advantage, rewards, flat.group_ids, num_trained, algorithm.pass_k)
        advantages = by_sequence[flat.sequence_ids]

    constant = algorithm.aggregation_constant or max_tokens
    starts = range(0, len(batch.groups), mini_batch_size)
    return [
        _mini_batch(flat, mask, advantages, slice(start, start + mini_batch_size), algorithm.aggregation, constant)
        for start in starts
    ]


def _mini_batch(
    flat: _Flat, mask: Tensor, advantages: Tensor, groups: slice, aggregation: str, constant: int
) -> MiniBatch:
    """Of some groups of the batch; `mask` and `advantages` are [T] over the batch."""
    chosen = (flat.group_ids >= groups.start) & (flat.group_ids < groups.stop)
    first, end = int(chosen.long().argmax()), int(chosen.nonzero()[-1]) + 1
    tokens = slice(flat.offsets[first], flat.offsets[end])
    ids = flat.sequence_ids[tokens]
    weights = token_weights(aggregation, mask[tokens], ids - first, flat.group_ids[ids] - groups.start, constant)
    return MiniBatch(
        flat.prompts[first:end],
        flat.completions[first:end],
        flat.positions[tokens],
        flat.offsets[first : end + 1] - flat.offsets[first],
        flat.group_ids[first:end].numpy(),
        ActionTokens(
            flat.targets[tokens],
            flat.behaviour_logprobs[tokens],
            flat.lags[tokens],
            flat.engines[tokens],
            ids - first,
            advantages[tokens],
            weights.float(),
            flat.supports[tokens],
        ),
    )


class _Flat(NamedTuple):
    """A batch of N sequences with T sampled tokens, group after group; what has a namesake above is as there."""

    prompts: list[NDArray[np.int32]]
    completions: list[NDArray[np.int32]]
    lengths: Tensor
    """[N] int64 tokens of each completion, an environment's among them."""
    group_ids: Tensor
    """[N] int64"""
    offsets: NDArray[np.int64]
    positions: NDArray[np.int64]
    sequence_ids: Tensor
    """[T] int64"""
    targets: Tensor
    behaviour_logprobs: Tensor
    lags: Tensor
    engines: Tensor
    supports: Tensor


def _flatten(batch: Batch) -> _Flat:
    groups = batch.groups
    lengths = np.concatenate([group.lengths for group in groups]).astype(np.int64)
    sampled = np.concatenate([group.sampled for group in groups])
    tokens = np.concatenate([group.tokens for group in groups])
    logprobs = np.concatenate([group.logprobs for group in groups])
    ends = lengths.cumsum()
    sequence_ids = np.repeat(np.arange(len(lengths)), lengths)[sampled]
    group_ids = np.repeat(np.arange(len(groups)), [group.size for group in groups])
    engine_ids = np.asarray([batch.engines.index(group.engine) if group.engine else -1 for group in groups])
    return _Flat(
        prompts=[group.prompt_token_ids for group in groups for _ in range(group.size)],
        completions=np.split(tokens, ends[:-1]),
        lengths=torch.from_numpy(lengths),
        group_ids=torch.from_numpy(group_ids),
        offsets=np.concatenate([[0], np.bincount(sequence_ids, minlength=len(lengths)).cumsum()]),
        positions=(np.arange(len(tokens)) - np.repeat(ends - lengths, lengths))[sampled],
        sequence_ids=torch.from_numpy(sequence_ids),
        targets=torch.from_numpy(tokens[sampled].astype(np.int64)),
        behaviour_logprobs=torch.from_numpy(logprobs[sampled]),
        lags=torch.from_numpy(token_lags(batch)),
        engines=torch.from_numpy(engine_ids[group_ids][sequence_ids]),
        supports=torch.from_numpy(_supports(groups, sampled)),
    )


def _supports(groups: Sequence[Group], sampled: NDArray[np.bool_]) -> NDArray[np.int32]:
    """[T, K] as in `ActionTokens`."""
    sizes = np.concatenate([group.support_sizes for group in groups])
    if len(sizes) == 0:
        return np.zeros((int(sampled.sum()), 0), np.int32)
    assert len(sizes) == len(sampled), "some groups of a batch were sampled from the whole vocabulary, others were not"
    sizes = sizes[sampled]
    supports = np.full((len(sizes), int(sizes.max())), -1, np.int32)
    supports[np.arange(sizes.max()) < sizes[:, None]] = np.concatenate([group.support_ids for group in groups])
    return supports


def _term_scores(groups: Sequence[Group], weights: Mapping[str, float]) -> Tensor:
    """[N, K] float64 score of each completion by each of K reward terms; NaN = quarantined."""
    scores = []
    for group in groups:
        quarantined = np.isnan(group.rewards)
        none = np.full(group.size, np.nan)
        by_term = [none if quarantined.all() else np.asarray(group.term_scores[label]) for label in weights]
        scores.append(np.where(quarantined, np.nan, by_term))
    return torch.from_numpy(np.concatenate(scores, axis=1).T)


def _to_train(batch: Batch, scores: Tensor, group_ids: Tensor, algorithm: AlgorithmConfig) -> Tensor:
    """[N] bool: completions that are neither quarantined nor left out by overlong=mask or zero_variance.

    `scores` are [N, K], of which one that varies within the group is a signal.
    """
    kept = ~scores.isnan().any(1)
    if algorithm.overlong == "mask":
        kept &= ~torch.from_numpy(np.concatenate([group.truncated for group in batch.groups]))
    if algorithm.zero_variance != "keep":
        kept &= torch.stack([varies(term, group_ids) for term in scores.T]).any(0)
    return kept
