"""Batch → mini-batches → micro-batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.config.algorithm import AlgorithmConfig
from asyncrl.errors import StalenessError
from asyncrl.learn.update.batch_metrics import batch_metrics
from asyncrl.learn.update.mini_batches import mini_batches
from asyncrl.learn.update.packing import (
    Layout,
    best_row_tokens,
    build_micro_batch,
    cost_of,
    num_tokens_of,
    own_micro_batches,
    plan_micro_batches,
    rows_of,
)
from asyncrl.types import Batch
from tests.support.learn import random_batch

ALGORITHM = AlgorithmConfig()
HIDDEN_SIZE = 8
layouts = st.sampled_from(["padded", "shared", "packed"])


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 5), st.integers(1, 120), layouts)
def test_each_sequence_is_planned_once_within_the_budget_and_ranks_stay_in_step(
    lengths: list[int], num_ranks: int, budget: int, layout: Layout
) -> None:
    costs = [cost_of(length, 8) for length in lengths]
    plan = plan_micro_batches(lengths, costs, num_ranks, budget, layout)
    assert len(plan) == num_ranks
    assert len({len(micro_batches) for micro_batches in plan}) == 1
    planned = [sequence for micro_batches in plan for chosen in micro_batches for sequence in chosen]
    assert sorted(planned) == list(range(len(lengths)))
    for micro_batches in plan:
        for chosen in micro_batches:
            sizes = [lengths[sequence] for sequence in chosen]
            num_tokens = max(sizes, default=0) * len(sizes) if layout == "padded" else sum(sizes)
            assert num_tokens <= budget or len(chosen) == 1
    of_each = [[sum(costs[sequence] for sequence in chosen) for chosen in micro_batches] for micro_batches in plan]
    loads = [sum(of_micro_batches) for of_micro_batches in of_each]
    assert max(loads) - min(loads) <= max(costs, default=0) * (1 + 1e-9)
    assert all(of_micro_batches == sorted(of_micro_batches, reverse=True) for of_micro_batches in of_each)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.sampled_from(["padded", "shared"]))
def test_rows_of_which_a_part_would_be_padding_are_alike_in_length(
    lengths: list[int], budget: int, layout: Layout
) -> None:
    (micro_batches,) = plan_micro_batches(lengths, [1.0] * len(lengths), 1, budget, layout)
    for chosen in filter(None, micro_batches):
        sizes = [lengths[sequence] for sequence in chosen]
        assert min(sizes) >= (0.7 if layout == "padded" else 0.5) * max(sizes)


@given(st.integers(0, 20), st.integers(5, 60))
def test_only_attention_sees_padding_where_rows_are_shared(seed: int, limit: int) -> None:
    (mini_batch,) = mini_batches(random_batch(seed, step=3), ALGORITHM, 2, 4, 8)
    rows = rows_of(mini_batch, mini_batch.trained_sequences, "shared", 1, HIDDEN_SIZE, limit)
    micro_batch = build_micro_batch(mini_batch, rows, "shared")
    assert micro_batch.input_ids.shape == (1, micro_batch.num_tokens)
    assert micro_batch.rows is not None
    assert micro_batch.attention_mask is not None
    token_at, place_of = micro_batch.rows
    places = token_at.view(len(rows), micro_batch.attention_mask.shape[-1])
    assert torch.equal(token_at[place_of], torch.arange(micro_batch.num_tokens))
    start = 0
    for row, tokens, sees in zip(rows, places.tolist(), micro_batch.attention_mask[:, 0], strict=True):
        num_tokens = num_tokens_of(mini_batch, row)
        assert tokens[:num_tokens] == list(range(start, start + num_tokens))
        assert not sees[num_tokens:, :num_tokens].any()
        assert not sees[:num_tokens, num_tokens:].any()
        start += num_tokens


@given(st.integers(0, 20), st.integers(1, 3), st.integers(5, 60), layouts)
def test_a_micro_batch_predicts_each_sampled_token_from_the_token_before_it(
    seed: int, num_ranks: int, budget: int, layout: Layout
) -> None:
    (mini_batch,) = mini_batches(random_batch(seed, step=3), ALGORITHM, 2, 4, 8)
    rows = rows_of(mini_batch, mini_batch.trained_sequences, layout, num_ranks, HIDDEN_SIZE, budget)
    lengths = [num_tokens_of(mini_batch, row) for row in rows]
    seen = torch.zeros(len(mini_batch.actions.targets), dtype=torch.int64)
    for micro_batches in plan_micro_batches(lengths, lengths, num_ranks, budget, layout):
        for numbers in micro_batches:
            chosen = [rows[number] for number in numbers]
            micro_batch = build_micro_batch(mini_batch, chosen, layout)
            actions = micro_batch.actions
            if not chosen:
                assert actions.weights.tolist() == [0.0]
                continue
            places = torch.cat([torch.arange(*mini_batch.offsets[i : i + 2]) for row in chosen for i in row])
            in_sequence = torch.from_numpy(mini_batch.positions)[places]
            before = [
                mini_batch.completions[i][place - 1] if place else mini_batch.prompts[i][-1]
                for i, place in zip(actions.segment_ids.tolist(), in_sequence.tolist(), strict=True)
            ]
            assert micro_batch.input_ids.flatten()[micro_batch.indices].tolist() == before
            prompt_lengths = torch.tensor([len(mini_batch.prompts[i]) for i in actions.segment_ids.tolist()])
            positions = micro_batch.position_ids.flatten()[micro_batch.indices]
            assert torch.equal(positions, prompt_lengths - 1 + in_sequence)
            seen[places] += 1
    assert torch.equal(seen, torch.ones_like(seen))


def test_packs_of_lognormal_lengths_are_full_and_cost_every_rank_the_same() -> None:
    lengths = np.random.default_rng(0).lognormal(7.3, 1.0, 1024).astype(int).clip(1, 16384).tolist()
    costs = [cost_of(length, 1024) for length in lengths]
    plan = plan_micro_batches(lengths, costs, 4, 16384, "packed")
    loads = [sum(costs[row] for chosen in micro_batches for row in chosen) for micro_batches in plan]
    assert max(loads) <= 1.001 * sum(loads) / 4
    assert sum(lengths) >= 0.97 * 16384 * sum(len(micro_batches) for micro_batches in plan)


@given(st.integers(0, 20), st.integers(1, 40))
def test_in_a_shared_row_a_token_sees_its_prompt_and_its_own_completion_alone(seed: int, limit: int) -> None:
    (mini_batch,) = mini_batches(random_batch(seed, step=3), ALGORITHM, 2, 4, 8)
    rows = rows_of(mini_batch, mini_batch.trained_sequences, "shared", 1, HIDDEN_SIZE, limit)
    mask = build_micro_batch(mini_batch, rows, "shared").attention_mask
    assert mask is not None
    for row, sees in zip(rows, mask[:, 0], strict=True):
        assert len({mini_batch.group_ids[i] for i in row}) == 1
        assert len(row) == 1 or num_tokens_of(mini_batch, row) <= limit
        start = num_prompt = len(mini_batch.prompts[row[0]])
        for i in row:
            for place in range(len(mini_batch.completions[i])):
                visible = {*range(num_prompt), *range(start, start + place + 1)}
                assert set(sees[start + place].nonzero()[:, 0].tolist()) == visible
            start += len(mini_batch.completions[i])


@given(st.integers(0, 20), st.integers(1, 6))
def test_a_group_is_cut_so_that_no_rank_has_more_than_its_share_in_one_row(seed: int, num_ranks: int) -> None:
    (mini_batch,) = mini_batches(random_batch(seed, step=3), ALGORITHM, 2, 4, 8)
    sequences = mini_batch.trained_sequences
    rows = rows_of(mini_batch, sequences, "shared", num_ranks, HIDDEN_SIZE, 10_000)
    assert [i for row in rows for i in row] == sequences
    assert all(len(row) <= -(-len(sequences) // num_ranks) for row in rows)


@given(st.integers(1, 2000), st.sampled_from([8, 128, 4096]), st.floats(0.1, 10))
def test_no_other_length_of_a_row_costs_less_than_the_best(prompt: int, hidden_size: int, factor: float) -> None:
    def cost(shared: float) -> float:
        """Of a completion token, up to a factor: products 12·h, attention over the row."""
        return (prompt + shared) * (12 * hidden_size + prompt + shared) / shared

    best = best_row_tokens(prompt, hidden_size) - prompt
    assert cost(best) <= cost(factor * (best + 1)) * (1 + 1 / best)  # it is whole


def test_mini_batches_keep_the_order_of_the_groups_and_weigh_each_on_its_own() -> None:
    batch = random_batch(3, step=2)
    parts = mini_batches(batch, ALGORITHM, 2, 2, 8)
    targets = torch.cat([part.actions.targets for part in parts]).numpy()
    np.testing.assert_array_equal(targets, np.concatenate([group.tokens for group in batch.groups]))
    assert [part.actions.weights.sum().item() for part in parts] == pytest.approx([1.0, 1.0])


def test_a_token_over_the_bound_has_weight_zero_and_a_quarantined_completion_too() -> None:
    batch = random_batch(5, step=8)
    group = batch.groups[0]
    group.rewards[1] = np.nan
    (mini_batch,) = mini_batches(batch, ALGORITHM, 1, 4, 8)
    actions = mini_batch.actions
    lags = 8 - np.concatenate([item.versions for item in batch.groups])
    quarantined = actions.segment_ids == 1
    assert torch.equal(actions.mask, torch.from_numpy(lags <= 1) & ~quarantined)
    assert 1 not in mini_batch.trained_sequences


def test_a_token_of_a_later_version_is_refused_with_the_numbers() -> None:
    batch = random_batch(5, step=8)
    with pytest.raises(StalenessError, match=r"step 3 was given .* up to 8"):
        mini_batches(Batch(step=3, groups=batch.groups), ALGORITHM, 1, 4, 8)


def test_what_the_guard_masked_is_counted_with_the_lengths_of_its_completions() -> None:
    batch = random_batch(5, step=8)
    for group in batch.groups:
        group.versions[:] = 8
    stale = batch.groups[2]
    stale.versions[: stale.lengths[0] + 1] = 4  # all of the first completion, one token of the second
    metrics = batch_metrics(batch, max_staleness=2)
    num_tokens = sum(group.num_tokens for group in batch.groups)
    num_stale = int(stale.lengths[0]) + 1
    assert metrics["staleness/violations"] == num_stale
    assert metrics["staleness/violation_completions"] == 2
    assert metrics["staleness/violation_length_mean"] == stale.lengths[:2].mean()
    assert metrics["staleness/histogram"] == [num_tokens - num_stale, 0, 0, 0, num_stale]
    assert metrics["staleness/max"] == 4


def test_quarantined_completions_are_left_out_of_the_rewards() -> None:
    batch = random_batch(6)
    for group in batch.groups:
        group.rewards[:] = [1.0, 1.0, np.nan, 1.0]
        group.correct[:] = [True, False, False, True]
    metrics = batch_metrics(batch, max_staleness=2)
    assert metrics["reward/mean"] == 1.0
    assert metrics["reward/std"] == 0.0
    assert metrics["reward/quarantined"] == 4
    assert metrics["reward/accuracy"] == pytest.approx(2 / 3)
    assert metrics["reward/zero_variance_fraction"] == 1.0


def test_the_score_of_each_reward_term_is_logged_by_its_label() -> None:
    batch = random_batch(7)
    scores = [{"math": [1, 1, 0, 1], "style": [0.5] * 4}, {"math": [0, np.nan], "style": [0.1, np.nan]}, {}]
    groups = [replace(group, term_scores=of_group) for group, of_group in zip(batch.groups, scores, strict=False)]
    metrics = batch_metrics(replace(batch, groups=groups), max_staleness=2)
    assert metrics["reward/term/math"] == 3 / 5
    assert metrics["reward/term/style"] == pytest.approx(2.1 / 5)


def test_each_data_set_of_a_mixture_has_figures_of_its_own() -> None:
    batch = random_batch(8)
    names = ["sums"] + ["products"] * (len(batch.groups) - 1)
    groups = [replace(group, data_set=name) for group, name in zip(batch.groups, names, strict=True)]
    groups[0].rewards[:] = [1.0, np.nan, 0.0, 0.5]
    groups[0].correct[:] = [True, False, False, False]
    metrics = batch_metrics(replace(batch, groups=groups), max_staleness=2)
    assert metrics["data/sums/fraction"] == 1 / len(groups)
    assert metrics["data/sums/reward_mean"] == 0.5
    assert metrics["data/sums/accuracy"] == pytest.approx(1 / 3)
    assert metrics["data/products/fraction"] == pytest.approx(1 - 1 / len(groups))
    assert not any(name.startswith("data/") for name in batch_metrics(batch, max_staleness=2))


def test_rows_are_padded_where_no_completions_share_one_and_share_where_any_do() -> None:
    (mini_batch,) = mini_batches(random_batch(0, num_groups=2), AlgorithmConfig(), 9, 2, 8)
    for budget, is_padded in ((1, True), (10_000, False)):
        micro_batches = list(own_micro_batches(mini_batch, range(8), "shared", 64, budget, 0, 1))
        assert [micro_batch.rows is None for micro_batch in micro_batches] == [is_padded] * len(micro_batches)
        assert sum(len(micro_batch.actions.targets) for micro_batch in micro_batches) == len(mini_batch.actions.targets)
