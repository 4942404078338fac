from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyncrl.evaluation.estimators import Z_95, majority_at_k, mean_with_interval, pass_at_k

OUTCOMES = st.lists(st.booleans(), min_size=1, max_size=8)
VOTES = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), min_size=1, max_size=9)


@given(OUTCOMES, st.data())
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_with_a_correct_one(
    correct: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(correct)))
    choices = list(itertools.combinations(correct, k))
    share = Fraction(sum(any(choice) for choice in choices), len(choices))
    assert pass_at_k(len(correct), sum(correct), k) == pytest.approx(float(share), abs=1e-12)


@given(VOTES, st.data())
def test_majority_at_k_is_the_mean_over_lots_of_a_winner_drawn_among_the_most_given(
    votes: list[tuple[str | None, bool]], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(votes)))
    worth = []
    for start in range(0, len(votes) - k + 1, k):
        lot = [vote for vote in votes[start : start + k] if vote[0] is not None]
        counts = Counter(answer for answer, _ in lot)
        winners = [answer for answer, count in counts.items() if count == max(counts.values())]
        shares = [np.mean([correct for answer, correct in lot if answer == winner]) for winner in winners]
        worth.append(np.mean(shares) if shares else 0.0)
    answers, correct = zip(*votes, strict=True)
    assert majority_at_k(answers, correct, k) == pytest.approx(np.mean(worth))


def test_majority_at_1_is_pass_at_1_where_every_completion_states_an_answer() -> None:
    correct = [True, False, False, True, True]
    assert majority_at_k(list("abcde"), correct, 1) == pytest.approx(pass_at_k(5, 3, 1))


@pytest.mark.parametrize(("num_prompts", "num_correct"), [(10, 0), (10, 10), (10, 3), (400, 361)])
def test_of_right_and_wrong_the_interval_is_wilsons(num_prompts: int, num_correct: int) -> None:
    estimate = mean_with_interval([1.0] * num_correct + [0.0] * (num_prompts - num_correct))
    assert estimate.value == num_correct / num_prompts
    # Wilson's limits are where the score test is just at its limit: |p̂ − p| = z·√(p(1 − p)/n).
    for limit in (estimate.low, estimate.high):
        if 0 < limit < 1:
            distance = abs(estimate.value - limit)
            assert distance == pytest.approx(Z_95 * math.sqrt(limit * (1 - limit) / num_prompts), rel=1e-9)
    assert estimate.low < estimate.high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@example([2.2850674099506054e-125] * 5)
def test_the_interval_holds_the_mean_and_stays_within_0_and_1(values: list[float]) -> None:
    estimate = mean_with_interval(values)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize("num_samples", [1, 8])
def test_the_interval_holds_the_truth_in_about_95_of_100_evaluations(num_samples: int) -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        skill = rng.beta(1.0, 2.0, 60)  # the chance of each prompt to be solved; 1/3 in the mean
        values = rng.binomial(num_samples, skill) / num_samples
        estimate = mean_with_interval(values.tolist())
        held.append(estimate.low <= 1 / 3 <= estimate.high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_more_samples_of_the_same_prompts_make_the_interval_narrower() -> None:
    rng = np.random.default_rng(0)
    skill = rng.beta(1.0, 2.0, 60)
    widths = []
    for num_samples in (1, 16):
        estimate = mean_with_interval((rng.binomial(num_samples, skill) / num_samples).tolist())
        widths.append(estimate.high - estimate.low)
    assert widths[1] < widths[0]
