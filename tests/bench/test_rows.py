"""What benchmarks write as rows of the common form: the figures, and which way is better."""

from __future__ import annotations

import torch

from bench.chaos.report import Fault
from bench.chaos.report import measurements as chaos_rows
from bench.off_policy.report import Run
from bench.off_policy.report import measurements as off_policy_rows
from bench.pipeline.logprob import Measured as Pass
from bench.pipeline.logprob import rows as logprob_rows
from bench.support.rows import Measurement


def by_figure(rows: list[Measurement]) -> dict[str, tuple[list[float], str]]:
    return {row.figure: (row.values, row.better) for row in rows}


def test_chaos_writes_the_seconds_of_each_kind_and_the_books_that_have_to_be_zero() -> None:
    faults = [Fault("kill replay", 1.0, 2.0, 3.0), Fault("freeze replay", 4.0, 5.0, 6.0), Fault("kill replay", 7, 8, 9)]
    rows = by_figure(chaos_rows(faults, {"steps": 40, "prompts lost": 0}))
    assert rows["kill replay: detected_s"] == ([1.0, 7], "less")
    assert rows["freeze replay: recovered_s"] == ([6.0], "less")
    assert rows["prompts lost"] == ([0], "less")
    assert "steps" not in rows


def test_off_policy_writes_the_seeds_of_each_cell() -> None:
    runs = [
        Run("none", lag, seed, 25, 1e-3, [reward], 1.0)
        for lag, seed, reward in [(0, 0, 0.5), (0, 1, 1.0), (4, 0, 0.25), (4, 1, 0.75)]
    ]
    assert by_figure(off_policy_rows(runs)) == {"none, lag 4: final_over_on_policy": ([0.5, 0.75], "more")}


def test_the_output_head_writes_its_share_of_whole_logits() -> None:
    whole, chunked = Pass(2.0, 100, torch.zeros(1)), Pass(3.0, 10, torch.zeros(1))
    rows = by_figure(logprob_rows([(whole, chunked)]))
    assert rows["seconds_over_whole"] == ([1.5], "less")
    assert rows["peak_over_whole"] == ([0.1], "less")
