"""Batch → mini-batches: the sequences of one optimizer update, flattened, with a loss weight for each token.

The hard guard of the staleness bound stands here: a token with lag > max_staleness gets weight 0 before anything else
looks at it. (The reward of its completion still counts in the group's mean.)

Legend: N sequences, T sampled ("action") tokens over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyncrl.algorithms.advantage import compute_advantages, varies
from asyncrl.algorithms.aggregation import token_weights
from asyncrl.algorithms.overlong import soft_penalty
from asyncrl.algorithms.segments import segment_sum
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.errors import StalenessError
from asyncrl.types import Batch


@dataclass(frozen=True)
class ActionTokens:
    """What the loss needs of each of T sampled tokens."""

    targets: Tensor
    """[T] int64 token ids."""
    behaviour_logprobs: Tensor
    """[T] float32 log μ."""
    lags: Tensor
    """[T] int64: the step's version − the version that sampled the token."""
    segment_ids: Tensor
    """[T] int64: the token's sequence, 0 … N − 1 within the mini-batch."""
    advantages: Tensor
    """[T] float32"""
    weights: Tensor
    """[T] float32: share of the token in the mini-batch's loss; 0 = not trained."""

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
    offsets: NDArray[np.int64]
    """[N + 1]: sequence i has the action tokens offsets[i] … offsets[i + 1] − 1."""
    actions: ActionTokens
    """[T], sequence after sequence."""

    @property
    def trained_sequences(self) -> list[int]:
        """Sequences with at least one trained token; the others need no forward pass."""
        return self.actions.segment_ids[self.actions.mask].unique().tolist()

    def num_tokens(self, sequence: int) -> int:
        """Prompt and completion of one sequence."""
        return len(self.prompts[sequence]) + int(self.offsets[sequence + 1] - self.offsets[sequence])


def token_lags(batch: Batch) -> NDArray[np.int64]:
    """[T] lag of each token of the batch: batch.step − the version that sampled it.

    Raises:
        StalenessError: a token is from a version later than the step that consumes it.
    """
    versions = np.concatenate([group.versions for group in batch.groups]).astype(np.int64)
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

    Raises:
        StalenessError: as in `token_lags`.
    """
    groups = batch.groups
    sizes = torch.tensor([group.size for group in groups])
    group_ids = torch.arange(len(groups)).repeat_interleave(sizes)
    lengths = torch.from_numpy(np.concatenate([group.lengths for group in groups]).astype(np.int64))
    sequence_ids = torch.arange(len(lengths)).repeat_interleave(lengths)
    lags = torch.from_numpy(token_lags(batch))
    rewards = torch.from_numpy(np.concatenate([group.rewards for group in groups]))
    if algorithm.overlong == "penalty":
        rewards = rewards + soft_penalty(lengths, max_tokens, algorithm.overlong_buffer_tokens)
    mask = (lags <= max_staleness) & _to_train(batch, rewards, group_ids, algorithm)[sequence_ids]
    if penalties is not None:
        rewards = rewards - penalties
    num_trained = segment_sum(mask.long(), sequence_ids, len(lengths))
    advantages = compute_advantages(algorithm.advantage, rewards, group_ids, num_trained, algorithm.pass_k)

    targets = torch.from_numpy(np.concatenate([group.tokens for group in groups]).astype(np.int64))
    behaviour_logprobs = torch.from_numpy(np.concatenate([group.logprobs for group in groups]))
    constant = algorithm.aggregation_constant or max_tokens
    first_sequences = [0, *sizes.cumsum(0).tolist()]
    first_tokens = np.concatenate([[0], lengths.cumsum(0).numpy()])
    result = []
    for start in range(0, len(groups), mini_batch_size):
        chosen = groups[start : start + mini_batch_size]
        first, end = first_sequences[start], first_sequences[start + len(chosen)]
        tokens = slice(first_tokens[first], first_tokens[end])
        ids = sequence_ids[tokens]
        weights = token_weights(algorithm.aggregation, mask[tokens], ids - first, group_ids[ids] - start, constant)
        actions = ActionTokens(
            targets[tokens], behaviour_logprobs[tokens], lags[tokens], ids - first, advantages[ids], weights.float()
        )
        prompts = [group.prompt_token_ids for group in chosen for _ in range(group.size)]
        result.append(MiniBatch(prompts, first_tokens[first : end + 1] - first_tokens[first], actions))
    return result


def _to_train(batch: Batch, rewards: Tensor, group_ids: Tensor, algorithm: AlgorithmConfig) -> Tensor:
    """[N] bool: completions that are neither quarantined nor left out by overlong=mask or zero_variance."""
    kept = ~rewards.isnan()
    if algorithm.overlong == "mask":
        kept &= ~torch.from_numpy(np.concatenate([group.truncated for group in batch.groups]))
    if algorithm.zero_variance != "keep":
        kept &= varies(rewards, group_ids)
    return kept
