"""The advantage of a completion for the best of k (Pass@k Training, arXiv 2508.10751, the analytical form).

The reward of k completions is that of their best. Over all subsets of k out of a group's n valid completions, let M
and S be the mean and the standard deviation of that reward, and M_i its mean over the subsets that hold completion i.

    A_i = (M_i − M) / (S + eps)

The paper has it for rewards 0 and 1, where with z zeros M = 1 − C(z, k)/C(n, k), S² = M·(1 − M), M_i = 1 for a one and
1 − C(z − 1, k − 1)/C(n − 1, k − 1) for a zero; here rewards may be any. With k = 1 it is GRPO's, with the biased std.

Nothing is sampled: with r_0 ≤ … ≤ r_(n−1) sorted, r_j is the best of C(j, k − 1) subsets, all of which hold j, and
C(j − 1, k − 2) of which hold an i < j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asyncrl.algorithms.segments import num_segments, segment_sum


def pass_at_k(rewards: Tensor, group_ids: Tensor, k: int, std_eps: float) -> Tensor:
    """[N] advantages; about 0 for every completion of a group with k or fewer.

    Args:
        rewards: [N] float, none of them NaN.
        group_ids: [N] int64, ≥ 0.
        k: ≥ 1.
        std_eps: added to the standard deviation.
    """
    order = rewards.argsort()
    order = order[group_ids[order].argsort(stable=True)]
    values, groups = rewards[order].double(), group_ids[order]
    size = num_segments(groups)
    counts = segment_sum(torch.ones_like(values), groups, size)
    ends = counts.cumsum(0)
    ranks = torch.arange(len(values), dtype=torch.float64, device=values.device) - (ends - counts)[groups]

    num_others = (counts - 1)[groups]
    share_best = _choose(ranks, k - 1) / _choose(num_others + 1, k).clamp(min=1)
    mean = segment_sum(share_best * values, groups, size)
    deviation = values - mean[groups]
    std = segment_sum(share_best * deviation.square(), groups, size).sqrt()

    num_with_own = _choose(num_others, k - 1).clamp(min=1)
    as_best = _choose(ranks, k - 1) / num_with_own * deviation
    under_better = (_choose(ranks - 1, k - 2) / num_with_own * deviation).cumsum(0)
    last = (ends - 1).long()[groups]
    advantages = (as_best + under_better[last] - under_better) / (std[groups] + std_eps)
    return torch.empty_like(advantages).index_copy(0, order, advantages * (num_others >= k))


def _choose(n: Tensor, k: int) -> Tensor:
    """C(n, k) of whole numbers n, float64; 0 where k or n is out of range."""
    result = torch.ones_like(n) if k >= 0 else torch.zeros_like(n)
    for factor in range(k):
        result = result * (n - factor).clamp(min=0) / (factor + 1)
    return result.where(n >= 0, 0.0)
