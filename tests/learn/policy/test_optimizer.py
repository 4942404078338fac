"""The learning rate as a function of the update."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.config.schema import LearnerConfig
from asyncrl.learn.policy.optimizer import learning_rate


def rates(schedule: str, num_warmup: int, num_updates: int) -> list[float]:
    learner = LearnerConfig(lr=2.0, schedule=schedule)
    return [learning_rate(update, learner, num_warmup, num_updates) for update in range(num_updates)]


def test_the_warm_up_rises_linearly_to_the_peak() -> None:
    assert rates("constant", 4, 6) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_linear_falls_evenly_and_would_be_zero_after_the_last_update() -> None:
    assert rates("linear", 1, 5) == [2.0, 2.0, 1.5, 1.0, 0.5]


def test_cosine_is_at_half_the_peak_halfway() -> None:
    assert rates("cosine", 0, 4) == pytest.approx([2.0, 1.7071068, 1.0, 0.2928932])


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 10), st.integers(1, 30))
def test_every_update_of_the_run_has_a_positive_rate_up_to_the_peak(schedule: str, warmup: int, total: int) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(schedule, warmup, total))


def test_a_run_that_goes_on_longer_than_planned_has_a_rate_of_zero_and_not_a_negative_one() -> None:
    assert learning_rate(9, LearnerConfig(schedule="linear"), 0, 5) == 0.0
