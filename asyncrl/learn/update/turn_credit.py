"""algorithm.credit=turn: a token's advantage is of what its episode is paid from its turn on.

What was paid before a turn does not depend on it, so leaving it out changes no gradient's mean and lowers its variance
(Williams 1992; Sutton and Barto, Reinforcement Learning, section 13.3). The baseline of a turn is the same turn of the
group's other episodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from asyncrl.algorithms.advantage import compute_advantages
from asyncrl.algorithms.segments import segment_sum
from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.types import Group


def turn_advantages(groups: Sequence[Group], rewards: Tensor, mask: Tensor, algorithm: AlgorithmConfig) -> Tensor:
    """[T] by `algorithm.advantage`, with the k-th turns of a group's episodes in the place of its completions.

    A turn that no other episode of the group has is without a baseline: by grpo its advantage is 0.

    Args:
        groups: with `turn_rewards`.
        rewards: [N] of whole episodes. Where they are less than the sum over the turns (a penalty for length, a KL),
            the last turn pays; NaN = quarantined.
        mask: [T] bool, the sampled tokens that are trained.
    """
    episodes = [episode for group in groups for episode in group.turn_rewards]
    num_turns = np.array([len(episode) for episode in episodes])
    paid = torch.tensor([sum(episode) for episode in episodes])
    to_go = [value for episode in episodes for value in np.cumsum(episode[::-1])[::-1]]
    returns = torch.tensor(to_go, dtype=torch.float32) + (rewards - paid).repeat_interleave(torch.from_numpy(num_turns))
    group_of = np.repeat(np.arange(len(groups)), [group.num_turns.sum() for group in groups])
    place = np.concatenate([np.arange(count) for count in num_turns])
    _, peers = np.unique(group_of * num_turns.max() + place, return_inverse=True)
    spans = [
        run
        for group in groups
        for completion in group.spans or [[length] for length in group.lengths]
        for run in completion[::2]
    ]
    turn_ids = torch.arange(len(spans)).repeat_interleave(torch.tensor(spans))
    num_trained = segment_sum(mask.long(), turn_ids, len(spans))
    advantages = compute_advantages(
        algorithm.advantage, returns, torch.from_numpy(peers), num_trained, algorithm.pass_k
    )
    return advantages[turn_ids]
