"""Advantages from rewards. Legend: N completions in all; completions with the same group id share a prompt.

A NaN reward marks a quarantined completion: it is left out of its group's mean and standard deviation, and its own
advantage is 0. Groups may be of any sizes and in any order. In a group whose valid rewards are all equal, or with only
one valid completion, every advantage that compares within the group is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from asyncrl.algorithms.pass_at_k import pass_at_k
from asyncrl.algorithms.segments import num_segments, segment_reduce, segment_sum

STD_EPS = 1e-6
"""Added to the standard deviation, as in verl (TRL adds 1e-4); only nearly equal rewards feel it."""


def grpo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = (r_i − mean) / (std + eps) within each group (GRPO, arXiv 2402.03300, eq. 3).

    The standard deviation is the unbiased one (divided by n − 1), as in TRL and verl; the paper does not say.

    Args:
        rewards: [N] float; NaN = quarantined.
        group_ids: [N] int64, ≥ 0.

    Returns:
        [N] advantages, of the rewards' dtype.
    """
    groups = _Groups.of(rewards, group_ids)
    squares = segment_sum(groups.deviation.square(), group_ids, len(groups.num_valid))
    std = (squares / (groups.num_valid - 1).clamp(min=1)).sqrt()
    return (groups.deviation / (std[group_ids] + STD_EPS)).to(rewards.dtype)


def dr_grpo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = r_i − mean within each group, without the division by std (Dr. GRPO, arXiv 2503.20783, section 3.2).

    Arguments and result as in `grpo`.
    """
    return _Groups.of(rewards, group_ids).deviation.to(rewards.dtype)


def rloo(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = r_i − mean of the *other* rewards of the group = n/(n − 1) · (r_i − mean) (RLOO, arXiv 2402.14740).

    Arguments and result as in `grpo`.
    """
    groups = _Groups.of(rewards, group_ids)
    factor = groups.num_valid / (groups.num_valid - 1).clamp(min=1)
    return (factor[group_ids] * groups.deviation).to(rewards.dtype)


def maxrl(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = (r_i − mean) / mean within each group: the rarer success, the larger its weight (MaxRL, arXiv 2602.02710).

    It is meant for rewards ≥ 0; a group whose mean is not above 0 gets 0. Arguments and result as in `grpo`.
    """
    groups = _Groups.of(rewards, group_ids)
    mean = groups.mean[group_ids]
    return (groups.deviation / mean.where(mean > 0, torch.inf)).to(rewards.dtype)


GROUP_ADVANTAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "maxrl": maxrl,
}
"""`algorithm.advantage` → function, for those that compare within a group."""


def reinforce_pp(rewards: Tensor, num_tokens: Tensor) -> Tensor:
    """A_i = (r_i − mean) / (std + eps) over the whole batch (REINFORCE++, arXiv 2501.03262).

    As in the paper the mean and the (biased) standard deviation are over *tokens*: a completion counts with its length.

    Args:
        rewards: [N] float; NaN = quarantined.
        num_tokens: [N] trained tokens of each completion; 0 leaves it out.

    Returns:
        [N] advantages, of the rewards' dtype; 0 for quarantined completions, and for all when all rewards are equal.
    """
    valid = ~rewards.isnan()
    values = rewards.where(valid, 0.0).double()
    shares = num_tokens.where(valid, 0).double()
    counted = values[shares > 0]
    if len(counted) == 0 or bool((counted == counted[0]).all()):
        return torch.zeros_like(rewards)
    shares = shares / shares.sum()
    deviation = (values - (shares * values).sum()).where(valid, 0.0)
    std = (shares * deviation.square()).sum().sqrt()
    return (deviation / (std + STD_EPS)).to(rewards.dtype)


def reinforce_pp_baseline(rewards: Tensor, group_ids: Tensor, num_tokens: Tensor) -> Tensor:
    """r_i − mean within each group, then whitened over the batch (REINFORCE++-baseline, arXiv 2501.03262).

    Arguments and result as in `grpo` and `reinforce_pp`.
    """
    return reinforce_pp(dr_grpo(rewards, group_ids).masked_fill(rewards.isnan(), torch.nan), num_tokens)


def best_of_k(rewards: Tensor, group_ids: Tensor, k: int) -> Tensor:
    """Of the best of k completions: see `pass_at_k`. Arguments and result as in `grpo`; 0 in a group of ≤ k."""
    chosen = (~rewards.isnan() & varies(rewards, group_ids)).nonzero()[:, 0]
    advantages = pass_at_k(rewards[chosen], group_ids[chosen], k, STD_EPS)
    return torch.zeros_like(rewards).index_copy(0, chosen, advantages.to(rewards.dtype))


def gdpo(scores: Tensor, weights: Tensor, group_ids: Tensor, num_tokens: Tensor) -> Tensor:
    """A_i = Σ_k w_k·grpo(r_k)_i / (std + eps): each reward normalised in its group, then the sum over the batch (GDPO,
    arXiv 2601.05242, eq. 4–6).

    The std is over the trained completions of the batch. The paper also takes off their mean, which is 0 since that of
    each group is; left out, a group in which no term varies has exactly 0.

    Args:
        scores: [N, K] float, completion i by reward k; a NaN quarantines the completion.
        weights: [K]
        group_ids: [N] int64, ≥ 0.
        num_tokens: [N] trained tokens of each completion; 0 leaves it out of the std.

    Returns:
        [N] advantages, of the scores' dtype.
    """
    quarantined = scores.isnan().any(1)
    valid = scores.double().masked_fill(quarantined[:, None], torch.nan)
    totals = torch.stack([grpo(term, group_ids) for term in valid.T], dim=1) @ weights.double()
    counted = totals[(num_tokens > 0) & ~quarantined]
    std = (counted.square().sum() / max(1, len(counted) - 1)).sqrt()
    return (totals / (std + STD_EPS)).to(scores.dtype)


def compute_advantages(name: str, rewards: Tensor, group_ids: Tensor, num_tokens: Tensor, k: int) -> Tensor:
    """[N] by `algorithm.advantage`, for all completions of a step.

    Arguments as in `grpo` and `reinforce_pp`; `k` is `algorithm.pass_k`.
    """
    if name == "pass_at_k":
        return best_of_k(rewards, group_ids, k)
    if name == "reinforce_pp":
        return reinforce_pp(rewards, num_tokens)
    if name == "reinforce_pp_baseline":
        return reinforce_pp_baseline(rewards, group_ids, num_tokens)
    return GROUP_ADVANTAGES[name](rewards, group_ids)


def varies(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """[N] bool: not all valid rewards of the completion's group are equal. Arguments as in `grpo`.

    Compared exactly, because a rounded mean leaves deviations near 1e-17 that a division by std would blow up.
    """
    valid = ~rewards.isnan()
    size = num_segments(group_ids)
    largest = segment_reduce(rewards.where(valid, -torch.inf), group_ids, size, "amax")
    smallest = segment_reduce(rewards.where(valid, torch.inf), group_ids, size, "amin")
    return (largest > smallest)[group_ids]


@dataclass(frozen=True)
class _Groups:
    """Float64 statistics of the valid completions."""

    mean: Tensor
    """[groups]; 0 without a valid completion."""
    num_valid: Tensor
    """[groups]"""
    deviation: Tensor
    """[N] r − mean; exactly 0 where r is NaN or the group's rewards are all equal."""

    @staticmethod
    def of(rewards: Tensor, group_ids: Tensor) -> _Groups:
        valid = ~rewards.isnan()
        values = rewards.where(valid, 0.0).double()
        size = num_segments(group_ids)
        num_valid = segment_sum(valid.double(), group_ids, size)
        mean = segment_sum(values, group_ids, size) / num_valid.clamp(min=1)
        deviation = values - mean[group_ids]
        return _Groups(mean, num_valid, deviation.where(valid & varies(rewards, group_ids), 0.0))
