"""Advantages against loops over groups."""

from __future__ import annotations

import math
import statistics
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms import advantage
from asyncrl.algorithms.advantage import GROUP_ADVANTAGES, STD_EPS, best_of_k, dr_grpo, varies
from asyncrl.algorithms.overlong import soft_penalty
from asyncrl.config.checks.algorithm import ALGORITHM_CHOICES

NAMES = [name for name in ALGORITHM_CHOICES["algorithm.advantage"] if name != "gdpo"]  # test_gdpo.py
Groups = list[list[tuple[float, int]]]
"""Groups of completions with a reward and a number of trained tokens."""

completions = st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, math.nan]), st.integers(0, 4))
batches = st.lists(st.lists(completions, min_size=1, max_size=6), min_size=1, max_size=5)


K = 2


def compute_advantages(
    name: str, rewards: torch.Tensor, group_ids: torch.Tensor, num_tokens: torch.Tensor
) -> torch.Tensor:
    return advantage.compute_advantages(name, rewards, group_ids, num_tokens, K)


def flatten(groups: Groups) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rewards, num_tokens = zip(*(completion for group in groups for completion in group), strict=True)
    ids = [number for number, group in enumerate(groups) for _ in group]
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(ids), torch.tensor(num_tokens)


def of_rewards(*groups: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return flatten([[(reward, 3) for reward in group] for group in groups])


def group_loop(name: str, groups: Groups) -> list[float]:
    result = []
    for group in groups:
        valid = [reward for reward, _ in group if not math.isnan(reward)]
        for reward, _ in group:
            if math.isnan(reward) or len(set(valid)) < 2:
                result.append(0.0)
                continue
            mean = statistics.fmean(valid)
            others = (sum(valid) - reward) / (len(valid) - 1)
            result.append(
                {
                    "grpo": (reward - mean) / (statistics.stdev(valid) + STD_EPS),
                    "dr_grpo": reward - mean,
                    "rloo": reward - others,
                    "maxrl": (reward - mean) / mean,
                }[name]
            )
    return result


def subsets_loop(groups: Groups, k: int) -> list[float]:
    """Every subset of k valid completions, one by one."""
    result: list[float] = []
    for group in groups:
        valid = [i for i, (reward, _) in enumerate(group) if not math.isnan(reward)]
        best = {subset: max(group[i][0] for i in subset) for subset in combinations(valid, k)}
        for i in range(len(group)):
            own = [value for subset, value in best.items() if i in subset]
            if len(own) < 1 or len(set(best.values())) < 2:
                result.append(0.0)
                continue
            std = statistics.pstdev(best.values())
            result.append((statistics.fmean(own) - statistics.fmean(best.values())) / (std + STD_EPS))
    return result


def whitened_loop(values: list[float], num_tokens: list[int]) -> list[float]:
    """Every token carries its completion's value; the statistics are those of the list of tokens."""
    tokens = [value for value, count in zip(values, num_tokens, strict=True) for _ in range(count)]
    tokens = [value for value in tokens if not math.isnan(value)]
    if len(set(tokens)) < 2:
        return [0.0] * len(values)
    mean, std = statistics.fmean(tokens), statistics.pstdev(tokens)
    return [0.0 if math.isnan(value) else (value - mean) / (std + STD_EPS) for value in values]


@given(batches)
def test_each_advantage_equals_a_loop_over_groups_or_tokens(groups: Groups) -> None:
    rewards, ids, num_tokens = flatten(groups)
    centred = [
        math.nan if math.isnan(reward) else deviation
        for reward, deviation in zip(rewards.tolist(), group_loop("dr_grpo", groups), strict=True)
    ]
    expected = {name: group_loop(name, groups) for name in GROUP_ADVANTAGES}
    expected["pass_at_k"] = subsets_loop(groups, K)
    expected["reinforce_pp"] = whitened_loop(rewards.tolist(), num_tokens.tolist())
    expected["reinforce_pp_baseline"] = whitened_loop(centred, num_tokens.tolist())
    for name in NAMES:
        result = compute_advantages(name, rewards, ids, num_tokens)
        torch.testing.assert_close(
            result, torch.tensor(expected[name], dtype=torch.float64), rtol=1e-6, atol=1e-6, msg=name
        )


@given(batches, st.randoms())
def test_the_order_of_groups_and_of_completions_changes_no_advantage(groups: Groups, random: object) -> None:
    rewards, ids, num_tokens = flatten(groups)
    order = torch.tensor(random.sample(range(len(ids)), len(ids)))  # type: ignore[attr-defined]
    for name in NAMES:
        straight = compute_advantages(name, rewards, ids, num_tokens)
        shuffled = compute_advantages(name, rewards[order], ids[order], num_tokens[order])
        torch.testing.assert_close(shuffled, straight[order], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("name", GROUP_ADVANTAGES)
def test_a_group_of_equal_rewards_gets_exactly_zero(name: str) -> None:
    advantages = compute_advantages(name, *of_rewards([0.1] * 7, [1.0, 0.0]))
    assert advantages[:7].tolist() == [0.0] * 7
    assert advantages[7] > 0 > advantages[8]


@pytest.mark.parametrize("name", NAMES)
def test_a_quarantined_completion_changes_nothing_for_the_others(name: str) -> None:
    with_nan = compute_advantages(name, *of_rewards([1.0, math.nan, 0.0, 0.0]))
    without = compute_advantages(name, *of_rewards([1.0, 0.0, 0.0]))
    assert with_nan[1] == 0
    torch.testing.assert_close(with_nan[[0, 2, 3]], without)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_equal_rewards_gets_exactly_zero(name: str) -> None:
    assert compute_advantages(name, *of_rewards([0.1] * 3, [0.1] * 4)).tolist() == [0.0] * 7


@given(batches, st.integers(1, 5))
def test_the_best_of_k_equals_an_enumeration_of_all_subsets(groups: Groups, k: int) -> None:
    rewards, ids, _ = flatten(groups)
    expected = torch.tensor(subsets_loop(groups, k), dtype=torch.float64)
    torch.testing.assert_close(best_of_k(rewards, ids, k), expected, rtol=1e-6, atol=1e-6)


@given(st.integers(1, 32), st.integers(1, 32), st.integers(1, 16))
def test_with_rewards_of_zero_and_one_the_best_of_k_is_the_papers_closed_form(
    num_ones: int, num_zeros: int, k: int
) -> None:
    n = num_ones + num_zeros
    rewards, ids, _ = of_rewards([1.0] * num_ones + [0.0] * num_zeros)
    result = best_of_k(rewards, ids, k)
    if k > num_zeros:  # every subset has a one
        assert result.abs().max() < 1e-6
        return
    missed = math.comb(num_zeros, k) / math.comb(n, k)  # 1 − the mean
    std = math.sqrt(missed * (1 - missed))
    zero = missed - math.comb(num_zeros - 1, k - 1) / math.comb(n - 1, k - 1)
    assert result[0].item() == pytest.approx(missed / (std + STD_EPS), rel=1e-6, abs=1e-9)
    assert result[-1].item() == pytest.approx(zero / (std + STD_EPS), rel=1e-6, abs=1e-9)


def test_groups_may_be_of_different_sizes_and_interleaved() -> None:
    rewards, ids = torch.tensor([1.0, 5.0, 0.0, 7.0, 3.0]), torch.tensor([0, 1, 0, 1, 1])
    assert dr_grpo(rewards, ids).tolist() == [0.5, 0.0, -0.5, 2.0, -2.0]


def test_a_group_varies_when_two_valid_rewards_differ() -> None:
    rewards, ids, _ = of_rewards([0.1, 0.1], [0.0, 1.0], [1.0, math.nan], [math.nan, math.nan])
    assert varies(rewards, ids).tolist() == [False, False, True, True, False, False, False, False]


def test_the_overlong_penalty_falls_from_zero_to_one_over_the_buffer() -> None:
    lengths = torch.tensor([1, 12, 13, 14, 16])
    assert soft_penalty(lengths, max_tokens=16, buffer_tokens=4).tolist() == [0.0, 0.0, -0.25, -0.5, -1.0]
