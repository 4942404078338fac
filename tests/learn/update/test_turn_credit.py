"""algorithm.credit=turn against a plain loop over the turns of each group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.learn.update.mini_batches import mini_batches
from asyncrl.types import Batch, Group
from tests.support.learn import random_batch, with_turns


def paid_by_turn(rng: np.random.Generator, group: Group) -> Group:
    rewards = [rng.integers(0, 4, count).astype(float).tolist() for count in group.num_turns]
    return replace(group, turn_rewards=rewards, rewards=np.array([sum(turns) for turns in rewards], np.float32))


def episodes(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    batch = random_batch(seed, step=3, num_groups=3)
    return replace(batch, groups=[paid_by_turn(rng, with_turns(rng, group)) for group in batch.groups])


def advantages(batch: Batch, algorithm: AlgorithmConfig) -> torch.Tensor:
    return torch.cat([part.actions.advantages for part in mini_batches(batch, algorithm, 9, 1, 8)])


def expected(group: Group) -> list[float]:
    """What is paid from the turn on, less its mean over the group's episodes that have that turn; token by token."""
    result = []
    for episode, spans in enumerate(group.spans):
        for turn, length in enumerate(spans[::2]):
            peers = [sum(turns[turn:]) for turns in group.turn_rewards if turn < len(turns)]
            result += [sum(group.turn_rewards[episode][turn:]) - sum(peers) / len(peers)] * length
    return result


@given(st.integers(0, 10**6))
def test_a_token_has_the_advantage_of_what_is_paid_from_its_turn_on(seed: int) -> None:
    batch = episodes(seed)
    got = advantages(batch, AlgorithmConfig(advantage="dr_grpo", credit="turn"))
    assert got.tolist() == pytest.approx([value for group in batch.groups for value in expected(group)], abs=1e-5)


@given(st.integers(0, 10**6), st.sampled_from(["grpo", "dr_grpo", "rloo", "maxrl", "reinforce_pp"]))
def test_with_one_turn_an_episode_it_is_the_credit_of_the_episode(seed: int, advantage: str) -> None:
    batch = random_batch(seed, step=3)
    one_turn = [replace(group, turn_rewards=[[float(reward)] for reward in group.rewards]) for group in batch.groups]
    by_turn = advantages(replace(batch, groups=one_turn), AlgorithmConfig(advantage=advantage, credit="turn"))
    torch.testing.assert_close(by_turn, advantages(batch, AlgorithmConfig(advantage=advantage)))


def test_a_quarantined_episode_is_nobodys_baseline() -> None:
    batch = episodes(5)
    group = batch.groups[0]
    rest = replace(
        group,
        turn_rewards=[[float("nan")] * len(group.turn_rewards[0]), *group.turn_rewards[1:]],
        rewards=np.array([np.nan, *group.rewards[1:]], np.float32),
    )
    algorithm = AlgorithmConfig(advantage="dr_grpo", credit="turn")
    got = advantages(Batch(3, [rest]), algorithm)
    num_first = sum(group.spans[0][::2])
    assert got[:num_first].tolist() == [0.0] * num_first
    peers = [sum(turns) for turns in group.turn_rewards[1:]]
    assert got[num_first].item() == pytest.approx(peers[0] - sum(peers) / 3, abs=1e-5)


def test_a_penalty_on_the_length_is_paid_by_every_turn_of_the_episode() -> None:
    batch = episodes(6)
    algorithm = AlgorithmConfig(advantage="dr_grpo", credit="turn", overlong="penalty", overlong_buffer_tokens=4)
    penalized = [
        replace(
            group,
            turn_rewards=[
                [*turns[:-1], turns[-1] - max(0.0, (length - 4) / 4)]
                for turns, length in zip(group.turn_rewards, group.lengths, strict=True)
            ],
        )
        for group in batch.groups
    ]
    assert advantages(batch, algorithm).tolist() == pytest.approx(
        [value for group in penalized for value in expected(group)], abs=1e-5
    )
