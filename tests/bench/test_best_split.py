"""The benchmark picks among measured runs as `asyncrl plan` picks among simulated ones."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from asyncrl.simulate.figures import Figures
from asyncrl.simulate.plan import Candidate, Split, choose, pareto_set
from bench.planning import best_split
from bench.planning.emulation import Figure

NOTHING = Figures(
    num_steps=2,
    step_s=1.0,
    samples_per_s=0.0,
    tokens_per_s=0.0,
    generation_s=0.0,
    learning_s=0.0,
    overlap_efficiency=0.0,
    learner_idle=0.0,
    generator_idle=0.0,
    generator_paused=0.0,
    staleness_mean=0.0,
    staleness_max=0,
    tokens_by_lag=[],
    queue_depth=0.0,
    num_masked_tokens=0,
    num_requeued=0,
    num_resampled_tokens=0,
    dollars_per_million_tokens=None,
)

distinct = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 40)), min_size=1, max_size=8, unique_by=lambda x: x[1]
)


@given(distinct)
def test_of_the_same_figures_the_benchmark_and_the_plan_pick_the_same(pairs: list[tuple[int, int]]) -> None:
    measured = {str(lag): Figure(float(speed), float(lag), 0.0) for speed, lag in pairs}
    candidates = [
        Candidate(Split(1, 1, 1, 1), lag, 1, replace(NOTHING, samples_per_s=float(speed), staleness_mean=float(lag)))
        for speed, lag in pairs
    ]
    assert best_split.choose(measured) == str(choose(pareto_set(candidates)).eta)
