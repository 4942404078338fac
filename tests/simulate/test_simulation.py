"""Simulated runs: what holds of every one, and closed forms where there are any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.simulate.figures import figures
from asyncrl.simulate.records import SimulatedRun
from asyncrl.simulate.setting import Death, Setting
from asyncrl.simulate.simulation import simulate
from tests.simulate.settings import TIMINGS, WORKLOAD, small_config

NUM_STEPS = 12


def run(*overrides: str, num_steps: int = NUM_STEPS, deaths: tuple[Death, ...] = (), seed: int = 0) -> SimulatedRun:
    return simulate(Setting(small_config(*overrides), TIMINGS, WORKLOAD, num_steps, list(deaths), seed))


settings_of_a_run = st.tuples(
    st.integers(1, 4).map("generator.count={}".format),
    st.integers(0, 4).map("replay.max_staleness={}".format),
    st.integers(1, 6).map("generator.max_groups_in_flight={}".format),
    st.integers(0, 5).map("run.save_every={}".format),
)
deaths = st.lists(st.builds(Death, st.floats(0, 20), st.floats(0.1, 10)), max_size=3).map(tuple)


@settings(max_examples=25, deadline=None)
@given(settings_of_a_run, deaths, st.integers(0, 9))
def test_no_token_is_over_the_bound_and_every_batch_is_full_whoever_dies(
    overrides: tuple[str, ...], deaths: tuple[Death, ...], seed: int
) -> None:
    result = run(*overrides, deaths=deaths, seed=seed)
    bound = result.setting.config.replay.max_staleness
    assert [step.step for step in result.steps] == list(range(NUM_STEPS))
    assert all(step.num_samples == 4 * 2 for step in result.steps)
    assert all(0 <= lag <= bound for step in result.steps for lag in step.tokens_by_lag)
    assert all(8 <= step.num_tokens <= 8 * WORKLOAD.max_tokens for step in result.steps)


@settings(max_examples=25, deadline=None)
@given(settings_of_a_run, st.sampled_from(["wait", "mask", "requeue"]), st.integers(0, 9))
def test_neither_side_is_faster_than_it_can_be(overrides: tuple[str, ...], stragglers: str, seed: int) -> None:
    result = run(*overrides, f"replay.stragglers={stragglers}", seed=seed)
    elapsed_s = result.steps[-1].end_s
    num_tokens = sum(step.num_tokens for step in result.steps)
    num_trained = num_tokens + NUM_STEPS * 4 * 2 * WORKLOAD.prompt_tokens
    learning_s = NUM_STEPS * (TIMINGS.train_base_s + TIMINGS.gather_s) + TIMINGS.train_per_token_s * num_trained
    config = result.setting.config
    most_at_once = 2 * config.generator.max_groups_in_flight
    step_s = TIMINGS.decode_base_s + TIMINGS.decode_per_sequence_s * most_at_once
    generation_s = num_tokens * step_s / most_at_once / config.generator.count
    assert elapsed_s >= max(learning_s, generation_s)
    totals = result.steps[-1].fleet
    assert 0 <= totals.busy_s <= totals.elapsed_s
    assert totals.num_tokens >= num_tokens


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.integers(1, 4), st.floats(0, 1), st.floats(0, 0.5))
def test_with_eta_zero_and_equal_lengths_a_step_is_the_sum_of_its_parts(
    length: int, group_size: int, reward_s: float, deliver_s: float
) -> None:
    timings = replace(TIMINGS, reward_s=reward_s, deliver_s=deliver_s)
    workload = replace(WORKLOAD, length_median=float(length), length_sigma=0.0)
    config = small_config("replay.max_staleness=0", f"algorithm.group_size={group_size}")
    result = simulate(Setting(config, timings, workload, NUM_STEPS))
    num_samples = 4 * group_size
    generation_s = 4 * 10 * timings.prefill_per_token_s + length * (
        timings.decode_base_s + timings.decode_per_sequence_s * num_samples
    )
    learning_s = timings.train_base_s + timings.train_per_token_s * num_samples * (10 + length)
    publish_s = timings.gather_s + timings.transfer_s + timings.stall_s
    assert figures(result).step_s == pytest.approx(generation_s + reward_s + deliver_s + learning_s + publish_s)
    assert figures(result).staleness_max == 0


def test_groups_of_one_length_drift_apart_since_engines_take_them_in_between_decode_steps() -> None:
    """Else those that began together would end together for ever, and each batch would be like the one before."""

    def num_kinds_of_batches(intake_steps: float) -> int:
        timings = replace(TIMINGS, train_base_s=0.4, transfer_s=0.05, intake_steps=intake_steps)
        steps = simulate(Setting(small_config(), timings, replace(WORKLOAD, length_sigma=0.0), 100)).steps[50:90]
        return len({tuple(sorted(step.tokens_by_lag.items())) for step in steps})

    assert num_kinds_of_batches(0.0) <= 2
    assert num_kinds_of_batches(1.0) > 5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.floats(0.01, 4.0), st.integers(1, 4))
def test_one_generator_and_one_learner_of_constant_times_take_the_longer_of_both(
    length: int, learning_s: float, eta: int
) -> None:
    """One prompt a step, one at a time, published at no cost: nothing is left to wait for but the slower side."""
    timings = replace(
        TIMINGS, train_base_s=learning_s, train_per_token_s=0.0, gather_s=0.0, transfer_s=0.0, stall_s=0.0
    )
    workload = replace(WORKLOAD, length_median=float(length), length_sigma=0.0, max_tokens=1000)
    one = ["learner.batch_size=1", "generator.max_groups_in_flight=1", f"replay.max_staleness={eta}"]
    result = figures(simulate(Setting(small_config(*one), timings, workload, 40)))
    generation_s = 10 * timings.prefill_per_token_s + length * (
        timings.decode_base_s + 2 * timings.decode_per_sequence_s
    )
    assert result.step_s == pytest.approx(max(generation_s, learning_s), rel=1e-6)


def test_tokens_over_the_bound_are_masked_or_sampled_again_when_batches_come_in_order_of_completion() -> None:
    overrides = ("generator.count=4", "replay.max_staleness=1")
    masked = run(*overrides, "replay.stragglers=mask", num_steps=60)
    assert max(lag for step in masked.steps for lag in step.tokens_by_lag) > 1
    assert figures(masked).num_masked_tokens > 0
    again = run(*overrides, "replay.stragglers=requeue", num_steps=60)
    assert figures(again).staleness_max <= 1
    assert again.num_requeued > 0
    assert again.num_resampled_tokens > 0


def test_a_window_lets_prompts_overtake_a_straggler_within_the_bound() -> None:
    overrides = ("generator.count=4", "replay.max_staleness=2")
    window = run(*overrides, "replay.stragglers=window", "replay.window=4", num_steps=60)
    assert figures(window).staleness_max <= 2
    assert all(step.num_samples == 4 * 2 for step in window.steps)
    assert window.steps[-1].end_s != run(*overrides, num_steps=60).steps[-1].end_s


def test_a_death_costs_time_and_loses_no_prompt() -> None:
    undisturbed = run("replay.max_staleness=1", num_steps=30)
    disturbed = run("replay.max_staleness=1", num_steps=30, deaths=(Death(5.0, 20.0),))
    assert disturbed.steps[-1].end_s > undisturbed.steps[-1].end_s + 15.0
    assert len(disturbed.steps) == 30
    assert disturbed.num_quarantined == 0


def test_an_evaluation_takes_generators_from_training() -> None:
    workload = replace(WORKLOAD, num_eval_prompts=40)
    config = small_config("run.eval_every=3", "data.eval=arithmetic")
    without = simulate(Setting(config, TIMINGS, WORKLOAD, NUM_STEPS))
    assert simulate(Setting(config, TIMINGS, workload, NUM_STEPS)).steps[-1].end_s > without.steps[-1].end_s


def test_the_controller_lowers_eta_when_stale_tokens_count_for_less() -> None:
    workload = replace(WORKLOAD, log_ess_per_version=0.2)
    config = small_config("replay.max_staleness=8", "replay.ess_target=0.7")
    etas = [step.eta for step in simulate(Setting(config, TIMINGS, workload, 100)).steps]
    assert max(etas) < 4
    assert [step.eta for step in simulate(Setting(config, TIMINGS, WORKLOAD, 100)).steps][-1] == 8


def test_groups_without_a_signal_are_replaced() -> None:
    workload = replace(WORKLOAD, no_signal_fraction=0.5)
    result = simulate(Setting(small_config("algorithm.zero_variance=refill"), TIMINGS, workload, NUM_STEPS))
    assert result.num_filtered > NUM_STEPS


def test_the_same_seed_gives_the_same_run() -> None:
    assert run("generator.count=3").steps == run("generator.count=3").steps
    assert run("generator.count=3").steps != run("generator.count=3", seed=1).steps
