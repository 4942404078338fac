"""Which completions of a batch are trained, with which rewards, and what broken ones do to the others: nothing."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.learn.update.mini_batches import MiniBatch, mini_batches
from asyncrl.learn.update.quarantine import quarantine_broken_logprobs
from asyncrl.types import Batch
from tests.support.learn import random_batch

MAX_TOKENS = 8


def whole(batch: Batch, algorithm: AlgorithmConfig, penalties: torch.Tensor | None = None) -> MiniBatch:
    (mini_batch,) = mini_batches(batch, algorithm, 9, len(batch.groups), MAX_TOKENS, penalties)
    return mini_batch


def with_rewards(batch: Batch, *rewards: list[float]) -> Batch:
    groups = [
        replace(group, rewards=np.array(values, np.float32))
        for group, values in zip(batch.groups, rewards, strict=True)
    ]
    return replace(batch, groups=groups)


def first_advantages(mini_batch: MiniBatch, num_sequences: int) -> list[float]:
    return [mini_batch.actions.advantages[mini_batch.offsets[i]].item() for i in range(num_sequences)]


def test_a_filtered_group_is_neither_trained_nor_counted_and_a_kept_one_is_counted() -> None:
    batch = with_rewards(random_batch(0, num_groups=2), [1, 1, 1, 1], [0, 1, 0, 1])
    kept, filtered = (whole(batch, AlgorithmConfig(zero_variance=name)) for name in ("keep", "filter"))
    assert kept.trained_sequences == list(range(8))
    assert filtered.trained_sequences == [4, 5, 6, 7]
    assert filtered.actions.weights.sum().item() == pytest.approx(1)
    assert filtered.actions.weights[-1] > kept.actions.weights[-1]


def test_an_overlong_completion_is_masked_or_its_reward_falls() -> None:
    batch = with_rewards(random_batch(1, num_groups=1), [1, 0, 1, 0])
    group = batch.groups[0]
    masked = whole(batch, AlgorithmConfig(overlong="mask"))
    assert masked.trained_sequences == np.flatnonzero(~group.truncated).tolist()

    shaped = whole(batch, AlgorithmConfig(advantage="dr_grpo", overlong="penalty", overlong_buffer_tokens=4))
    rewards = group.rewards - np.clip((group.lengths - 4) / 4, 0, 1)
    assert first_advantages(shaped, 4) == pytest.approx((rewards - rewards.mean()).tolist(), abs=1e-6)


def test_a_kl_penalty_is_taken_from_the_rewards_but_does_not_make_a_group_worth_training() -> None:
    batch = with_rewards(random_batch(2, num_groups=2), [1, 1, 1, 1], [0, 1, 0, 1])
    penalties = torch.arange(8) / 10
    mini_batch = whole(batch, AlgorithmConfig(advantage="dr_grpo", zero_variance="filter"), penalties)
    assert mini_batch.trained_sequences == [4, 5, 6, 7]
    rewards = np.array([0, 1, 0, 1]) - np.array([0.4, 0.5, 0.6, 0.7])
    assert first_advantages(mini_batch, 8)[4:] == pytest.approx((rewards - rewards.mean()).tolist(), abs=1e-6)


def test_gdpo_trains_on_each_term_by_itself_and_takes_a_group_whose_sums_are_equal_for_a_signal() -> None:
    batch = with_rewards(random_batch(2, num_groups=2), [2, 2, 2, 2], [1, 1, np.nan, 1])
    terms = [
        {"math": [2.0, 0.0, 1.0, 1.0], "style": [0.0, 2.0, 1.0, 1.0], "length": [1.0, 2.0, 3.0, 4.0]},
        {"math": [1.0, 1.0, np.nan, 1.0], "style": [0.0, 0.0, np.nan, 0.0], "length": [4.0, 5.0, np.nan, 6.0]},
    ]
    groups = [replace(group, term_scores=scores) for group, scores in zip(batch.groups, terms, strict=True)]
    algorithm = AlgorithmConfig(advantage="gdpo", zero_variance="filter")
    weights = {"math": 3.0, "style": 1.0, "length": 0.0}
    (mini_batch,) = mini_batches(replace(batch, groups=groups), algorithm, 9, 2, MAX_TOKENS, term_weights=weights)
    assert mini_batch.trained_sequences == [0, 1, 2, 3]
    std = np.sqrt(2 / 3)  # of 1, −1, 0, 0, as of each term and of the sum over the batch
    assert first_advantages(mini_batch, 8) == pytest.approx([1 / std, -1 / std, 0, 0, 0, 0, 0, 0], abs=1e-5)


def test_an_advantage_over_the_batch_does_not_depend_on_its_mini_batches() -> None:
    batch = random_batch(3, num_groups=4)
    algorithm = AlgorithmConfig(advantage="reinforce_pp")
    parts = mini_batches(batch, algorithm, 9, 1, MAX_TOKENS)
    torch.testing.assert_close(
        torch.cat([part.actions.advantages for part in parts]), whole(batch, algorithm).actions.advantages
    )


def test_the_order_of_the_groups_changes_nothing_but_the_order() -> None:
    batch = random_batch(4, step=3, num_groups=4)
    turned = replace(batch, groups=batch.groups[::-1])
    for aggregation in ("token_mean", "sequence_mean", "sequence_sum", "prompt_mean"):
        algorithm = AlgorithmConfig(aggregation=aggregation)
        straight, reverse = whole(batch, algorithm), whole(turned, algorithm)
        sizes = [group.num_tokens for group in batch.groups]
        for name in ("targets", "advantages", "weights", "lags"):
            pieces = getattr(straight.actions, name).split(sizes)
            torch.testing.assert_close(torch.cat(pieces[::-1]), getattr(reverse.actions, name))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_completion_with_a_broken_logprob_is_quarantined_and_named(
    bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    batch = random_batch(5, num_groups=2)
    group = batch.groups[1]
    group.logprobs[group.lengths[0]] = bad  # the first token of the second completion
    with caplog.at_level(logging.WARNING):
        result = quarantine_broken_logprobs(batch)
    assert "group 1 (prompt row 1): 1 tokens of completions [1]" in caplog.text
    assert result.groups[0] is batch.groups[0]
    assert np.isnan(result.groups[1].rewards).tolist() == [False, True, False, False]
    assert np.isfinite(result.groups[1].logprobs).all()
    assert 5 not in whole(result, AlgorithmConfig()).trained_sequences


def test_groups_of_unequal_size_and_an_empty_completion_are_trained_around() -> None:
    batch = random_batch(6, num_groups=3)
    group = batch.groups[1]
    keep = group.lengths[:2].sum()  # two completions are left, and an empty one between them
    small = replace(
        group,
        lengths=np.array([group.lengths[0], 0, group.lengths[1]], np.int32),
        rewards=np.array([0, 1, 2], np.float32),
        truncated=np.zeros(3, bool),
        correct=np.zeros(3, bool),
        **{name: getattr(group, name)[:keep] for name in ("tokens", "logprobs", "versions")},
    )
    mini_batch = whole(replace(batch, groups=[batch.groups[0], small, batch.groups[2]]), AlgorithmConfig())
    assert mini_batch.trained_sequences == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert len(mini_batch.completions[5]) == 0
    assert len(mini_batch.prompts) == 11


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "sequence_sum", "prompt_mean"])
def test_a_prompt_without_a_single_token_trains_nothing(aggregation: str) -> None:
    batch = random_batch(8, num_groups=2)
    empty = replace(
        batch.groups[0],
        lengths=np.zeros(4, np.int32),
        **{name: getattr(batch.groups[0], name)[:0] for name in ("tokens", "logprobs", "versions")},
    )
    algorithm = AlgorithmConfig(aggregation=aggregation)
    parts = mini_batches(replace(batch, groups=[empty, batch.groups[1]]), algorithm, 9, 1, MAX_TOKENS)
    assert [part.trained_sequences for part in parts] == [[], [0, 1, 2, 3]]
