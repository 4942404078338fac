"""What is fitted to runs, held against simulated runs whose timings are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.errors import UserError
from asyncrl.simulate.estimator import require_alike
from asyncrl.simulate.figures import figures
from asyncrl.simulate.fit import fit, rescaled
from asyncrl.simulate.measured import fit_lengths
from asyncrl.simulate.setting import Setting
from asyncrl.simulate.simulation import simulate
from asyncrl.simulate.timings import Workload
from tests.simulate.settings import TIMINGS, WORKLOAD, measured, small_config
from tests.support.models import random_model

FOLDERS = {"one": "qwen3", "same": "qwen3", "third": "qwen3_moe"}


def test_one_run_gives_the_speed_of_decoding_when_the_roofline_has_its_proportions() -> None:
    roofline = replace(TIMINGS, decode_base_s=0.02, decode_per_sequence_s=0.002, prefill_per_token_s=0.001)
    fitted = fit([measured(TIMINGS)], [roofline])
    assert fitted.decode_base_s == pytest.approx(TIMINGS.decode_base_s, rel=0.05)
    assert fitted.decode_per_sequence_s == pytest.approx(TIMINGS.decode_per_sequence_s, rel=0.05)


def test_runs_of_different_concurrency_give_both_parts_of_a_decode_step() -> None:
    timings = replace(TIMINGS, prefill_per_token_s=0.0)
    roofline = replace(timings, decode_base_s=0.003, decode_per_sequence_s=0.003)
    runs = [measured(timings, f"generator.max_groups_in_flight={credit}") for credit in (1, 12)]
    fitted = fit(runs, [roofline, roofline])
    assert fitted.decode_base_s == pytest.approx(timings.decode_base_s, rel=0.1)
    assert fitted.decode_per_sequence_s == pytest.approx(timings.decode_per_sequence_s, rel=0.1)


def test_a_fit_predicts_a_setting_that_it_has_not_seen() -> None:
    roofline = replace(TIMINGS, decode_base_s=0.02, decode_per_sequence_s=0.002, prefill_per_token_s=0.001)
    fitted = fit([measured(TIMINGS)], [roofline])
    other = small_config("generator.count=3", "replay.max_staleness=1")
    truth = figures(simulate(Setting(other, TIMINGS, WORKLOAD, 200, seed=9)))
    predicted = figures(simulate(Setting(other, fitted, WORKLOAD, 200)))
    assert predicted.samples_per_s == pytest.approx(truth.samples_per_s, rel=0.1)
    assert predicted.staleness_mean == pytest.approx(truth.staleness_mean, rel=0.15)


def test_runs_are_alike_when_their_models_have_one_shape_wherever_they_lie(tmp_path: Path) -> None:
    paths = [str(random_model(tmp_path / name, family, tied=True)) for name, family in FOLDERS.items()]
    runs = [measured(TIMINGS, f"model.path={path}") for path in paths]
    require_alike(runs[:2])
    with pytest.raises(UserError, match=f"differ in model.path \\({paths[0]}, {paths[2]}\\)"):
        require_alike([runs[0], runs[2]])
    with pytest.raises(UserError, match=r"differ in learner.count \(1, 2\)"):
        require_alike([runs[0], measured(TIMINGS, f"model.path={paths[1]}", "learner.count=2")])


def test_timings_change_with_the_roofline_of_another_configuration() -> None:
    half = replace(TIMINGS, decode_base_s=TIMINGS.decode_base_s / 2, max_sequences=7, overlaps=False)
    fitted = replace(TIMINGS, decode_base_s=0.5, deliver_s=0.3)
    other = rescaled(fitted, TIMINGS, half)
    assert other.decode_base_s == pytest.approx(0.25)
    assert other.train_per_token_s == TIMINGS.train_per_token_s
    assert (other.deliver_s, other.max_sequences, other.overlaps) == (0.3, 7, False)


@settings(max_examples=25, deadline=None)
@given(st.floats(5, 400), st.floats(0.1, 1.0), st.sampled_from([300, 4000]))  # to p99 = 10 × the median
def test_lengths_are_found_again_from_their_mean_and_tail(median: float, sigma: float, max_tokens: int) -> None:
    num_completions = 512
    truth = Workload(prompt_tokens=1, length_median=median, length_sigma=sigma, max_tokens=max_tokens)
    lengths = np.fromiter(truth.lengths(np.random.default_rng(1)), int, 200 * num_completions)
    steps = lengths.reshape(200, num_completions)
    found = fit_lengths(
        mean=lengths.mean(),
        longest=steps.max(axis=1).mean(),
        truncated_fraction=(lengths == max_tokens).mean(),
        num_completions=num_completions,
        max_tokens=max_tokens,
    )
    again = Workload(prompt_tokens=1, length_median=found[0], length_sigma=found[1], max_tokens=max_tokens)
    assert again.length_mean == pytest.approx(truth.length_mean, rel=0.03)
    assert again.context_mean == pytest.approx(truth.context_mean, rel=0.1)
