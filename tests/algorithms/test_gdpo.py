"""Per-reward normalisation against a loop with the standard library's statistics."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.advantage import STD_EPS, gdpo, grpo

Completion = tuple[float, float, float, int]
"""Its three scores and its trained tokens."""

scores = st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, math.nan])
completions = st.tuples(scores, scores, scores, st.integers(0, 3))
batches = st.lists(st.lists(completions, min_size=1, max_size=5), min_size=1, max_size=4)
weights_of_terms = st.tuples(*[st.sampled_from([-0.5, 0.2, 1.0, 3.0])] * 3)


def flatten(groups: list[list[Completion]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    flat = [completion for group in groups for completion in group]
    ids = [number for number, group in enumerate(groups) for _ in group]
    terms = torch.tensor([completion[:3] for completion in flat], dtype=torch.float64)
    return terms, torch.tensor(ids), torch.tensor([completion[3] for completion in flat])


def of_groups(groups: list[list[Completion]], weights: tuple[float, ...]) -> torch.Tensor:
    terms, ids, num_tokens = flatten(groups)
    return gdpo(terms, torch.tensor(weights, dtype=torch.float64), ids, num_tokens)


def loop(groups: list[list[Completion]], weights: tuple[float, ...]) -> list[float]:
    totals: list[float] = []
    counted: list[float] = []
    for group in groups:
        valid = [completion for completion in group if not any(math.isnan(score) for score in completion[:3])]
        for completion in group:
            total = 0.0
            for k, weight in enumerate(weights):
                column = [other[k] for other in valid]
                if completion in valid and len(set(column)) > 1:
                    total += weight * (completion[k] - statistics.fmean(column)) / (statistics.stdev(column) + STD_EPS)
            totals.append(total)
            if completion in valid and completion[3] > 0:
                counted.append(total)
    std = math.sqrt(math.fsum(total**2 for total in counted) / max(1, len(counted) - 1))
    return [total / (std + STD_EPS) for total in totals]


@given(batches, weights_of_terms)
def test_it_equals_a_loop_over_groups_and_terms(
    groups: list[list[Completion]], weights: tuple[float, float, float]
) -> None:
    expected = torch.tensor(loop(groups, weights), dtype=torch.float64)
    torch.testing.assert_close(of_groups(groups, weights), expected, rtol=1e-6, atol=1e-6)


@given(batches, weights_of_terms, st.randoms())
def test_the_order_of_groups_and_of_completions_changes_nothing(
    groups: list[list[Completion]], weights: tuple[float, float, float], random: object
) -> None:
    terms, ids, num_tokens = flatten(groups)
    order = torch.tensor(random.sample(range(len(ids)), len(ids)))  # type: ignore[attr-defined]
    of_weights = torch.tensor(weights, dtype=torch.float64)
    shuffled = gdpo(terms[order], of_weights, ids[order], num_tokens[order])
    torch.testing.assert_close(shuffled, of_groups(groups, weights)[order], rtol=1e-9, atol=1e-9)


def test_over_a_batch_that_is_trained_whole_the_mean_is_0_and_the_std_1() -> None:
    terms = torch.rand(6 * 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(6).repeat_interleave(8)
    result = gdpo(terms, torch.tensor([1.0, 0.3, 2.0]), ids, torch.ones(48, dtype=torch.int64))
    assert result.mean().item() == pytest.approx(0, abs=1e-12)
    assert result.std().item() == pytest.approx(1, abs=1e-5)


def test_the_scale_of_a_reward_changes_nothing_where_it_rules_the_sum() -> None:
    terms, ids, num_tokens = flatten([[(1, 0, 0, 3), (0, 1, 0, 3), (0, 0, 1, 3), (0, 1, 1, 3)]])
    weights, scale = torch.ones(3), torch.tensor([1.0, 100.0, 1.0])
    torch.testing.assert_close(
        gdpo(terms * scale, weights, ids, num_tokens), gdpo(terms, weights, ids, num_tokens), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(grpo((terms * scale).sum(1), ids), grpo(terms.sum(1), ids), atol=0.1)


def test_an_answer_that_wins_by_two_rewards_has_twice_the_advantage_of_one_that_wins_by_one() -> None:
    """The paper's figure 2: GRPO gives both groups the same."""
    terms, ids, num_tokens = flatten([[(0, 0, 0, 3), (1, 0, 0, 3)], [(0, 0, 0, 3), (1, 1, 0, 3)]])
    result = gdpo(terms, torch.ones(3), ids, num_tokens)
    assert result[3].item() == pytest.approx(2 * result[1].item(), rel=1e-5)
    assert grpo(terms.sum(1), ids)[1].item() == pytest.approx(grpo(terms.sum(1), ids)[3].item(), rel=1e-5)


def test_a_group_in_which_no_term_varies_gets_exactly_zero() -> None:
    result = of_groups([[(0.1, 0.5, 1.0, 3)] * 3, [(1.0, 0.0, 0.0, 3), (0.0, 0.0, 0.1, 3)]], (1.0, 0.7, 0.3))
    assert result[:3].tolist() == [0.0] * 3
    assert result[3] > 0 > result[4]
