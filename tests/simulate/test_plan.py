"""Plans: what is tried, what is left over, what is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.errors import ConfigError
from asyncrl.simulate.estimator import Inputs, from_config
from asyncrl.simulate.figures import Figures
from asyncrl.simulate.plan import SLOWER, Candidate, Split, choose, make_plan, pareto_set, with_split

ROOT = Path(__file__).parents[2]
EIGHT_B = [
    f"model.path={ROOT / 'tests' / 'models' / 'qwen3_8b'}",
    "learner.batch_size=16",
    "learner.mini_batch_size=16",
]


def given_8b(*overrides: str) -> Inputs:
    return from_config(ROOT / "configs" / "qwen3_8b_gsm8k.yaml", [*EIGHT_B, *overrides], None)


def candidate(samples_per_s: float, staleness_mean: float) -> Candidate:
    values = dict.fromkeys(Figures.__dataclass_fields__, 0)
    result = Figures(**{**values, "samples_per_s": samples_per_s, "staleness_mean": staleness_mean})  # type: ignore[arg-type]
    return Candidate(Split(1, 1, 1, 1), 0, 1, result)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1))
def test_no_candidate_beats_one_of_the_pareto_set_and_each_other_one_is_beaten(points: list[tuple[int, int]]) -> None:
    pareto = {
        (one.result.samples_per_s, one.result.staleness_mean) for one in pareto_set([candidate(*p) for p in points])
    }
    for point in points:
        beaten = any(
            (fast, -lag) != (point[0], -point[1]) and fast >= point[0] and lag <= point[1] for fast, lag in points
        )
        assert (point in pareto) != beaten


def test_the_choice_is_the_freshest_that_costs_little_speed() -> None:
    pareto = pareto_set([candidate(100, 4), candidate(100 * (1 - SLOWER) + 1, 1), candidate(50, 0)])
    assert choose(pareto).result.staleness_mean == 1


def test_a_plan_uses_all_gpus_and_leaves_out_what_does_not_fit() -> None:
    plan = make_plan(given_8b(), 8, 10, None)
    for one in plan.pareto:
        assert one.split.num_generators * one.split.tensor_parallel + one.split.num_learners == 8
        assert one.split.num_learners >= 3  # with 16 bytes a parameter, 8B takes 131 GB of their memory together
    assert any("7 generators × TP 1, 1 learners: a learner rank needs" in reason for reason in plan.too_large)
    assert f"learner.count={plan.chosen.split.num_learners}" in plan.chosen.overrides


def test_the_overrides_of_a_plan_make_the_configuration_that_was_simulated() -> None:
    given = given_8b()
    split = Split(2, 2, 4, 30)
    again = given_8b(*Candidate(split, 2, 1, candidate(1, 1).result).overrides).config
    assert again == with_split(given.config, split, 2, 1)


@pytest.mark.parametrize("override", ["replay.ess_target=0.5", "cluster.share_gpu=true"])
def test_what_leaves_nothing_to_plan_is_refused_with_its_key(override: str) -> None:
    sizes = ["generator.count=1", "generator.tensor_parallel=1", "learner.count=1"]
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        make_plan(given_8b(*sizes, override), 8, 10, None)


def test_too_few_gpus_for_the_model_are_refused_with_the_numbers() -> None:
    with pytest.raises(ConfigError, match="no split fits: 1 generators × TP 1, 1 learners: a learner rank needs 15"):
        make_plan(given_8b(), 2, 10, None)
