"""A run's own figures → the workload and the timings that a simulation of it takes. Reads files, changes nothing."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.data.prompts import load_prompts
from asyncrl.errors import DataError
from asyncrl.run.directory import eval_file, ledger_file, train_file
from asyncrl.run.metrics import FILE_NAME, Row, read_rows
from asyncrl.simulate.timings import Workload
from asyncrl.types import first_of_each

WARMUP_SHARE = 0.2
"""Of the rows: start-up, and a queue that fills."""
MIN_ROWS = 5
NUM_SERVING = "generator/num_serving"
TOTALS = ("generator/tokens_total", "queue/batch_held_total_s")
MAX_SIGMA = 4.0
"""A lognormal's p99 is then 11,000 times its median."""
NUM_QUANTILES = 1000


@dataclass(frozen=True)
class MeasuredRun:
    """What a run tells. Seconds are means over its steps after the warm-up.

    These are the steps since its processes changed last; where they are too few, those of the longest stretch between
    two changes.
    """

    config: Config
    """With the number of generators that served."""
    workload: Workload
    num_steps: int
    """Measured."""
    step_s: float
    samples_per_s: float
    staleness_mean: float
    staleness_max: float
    learner_idle: float
    generator_idle: float
    tokens_per_step: float
    """Sampled ones."""
    train_s: float
    gather_s: float
    publish_s: float
    """Transfer and stall."""
    stall_s: float
    deliver_s: float
    """A batch that was ready waited so long to be durable."""
    save_s: float
    """Of a step that saved."""
    busy_per_token_s: float
    """Seconds in which a generator was busy, ÷ the tokens that it finished."""


def read_run(run_dir: Path) -> MeasuredRun:
    """
    Raises:
        DataError: no run, or one with too few steps; names the file.
    """
    ledger, metrics = ledger_file(run_dir), run_dir / FILE_NAME
    for file in (run_dir / "config.yaml", ledger, metrics):
        if not file.is_file():
            raise DataError(f"--from {run_dir}: no run to learn from, it has no {file.name}")
    config = load(run_dir / "config.yaml")
    parts = stretches(read_rows(run_dir))
    rows = parts[-1] if len(parts[-1]) >= MIN_ROWS + 2 else max(parts, key=len)
    num_warmup = max(1, int(WARMUP_SHARE * len(rows)))
    if len(rows) - num_warmup < MIN_ROWS:
        within = "" if len(parts) == 1 else " between two changes of its processes"
        raise DataError(
            f"--from {run_dir}: {metrics} has {len(rows)} steps{within}; {MIN_ROWS + 2} are needed at least"
        )
    config = replace(config, generator=replace(config.generator, count=serving_generators(rows, config)))
    first, measured = rows[num_warmup - 1], rows[num_warmup:]
    elapsed_s = fmean(_values(measured, "time/step_s")) * len(measured)
    tokens = [row["throughput/learner_tokens_per_s"] * row["time/step_s"] for row in measured]
    generated = _rise(first, measured, "generator/tokens_total")
    publish_s, stall_s = (_mean(measured, name) for name in ("time/publish_s", "time/publish_stall_s"))
    return MeasuredRun(
        config=config,
        workload=_workload(run_dir, config, measured, _no_signal_fraction(ledger, config, measured)),
        num_steps=len(measured),
        step_s=elapsed_s / len(measured),
        samples_per_s=len(measured) * config.learner.batch_size * config.algorithm.group_size / elapsed_s,
        staleness_mean=_mean(measured, "staleness/mean"),
        staleness_max=max(_values(measured, "staleness/max")),
        learner_idle=_mean(measured, "idle/learner"),
        generator_idle=_mean(measured, "idle/generator"),
        tokens_per_step=fmean(tokens),
        train_s=_mean(measured, "time/train_s"),
        gather_s=_mean(measured, "time/gather_s"),
        publish_s=publish_s,
        stall_s=stall_s,
        deliver_s=_rise(first, measured, "queue/batch_held_total_s") / len(measured),
        save_s=_save_s(rows, config.run.save_every),
        busy_per_token_s=_rise(first, measured, "generator/busy_total_s") / generated,
    )


def stretches(rows: Sequence[Row]) -> list[list[Row]]:
    """The steps, cut where the number of generators changed or a process began anew, and its totals at 0."""
    parts: list[list[Row]] = [[]]
    for row in rows:
        if row["step"] <= 0:
            continue
        before = parts[-1][-1] if parts[-1] else row
        if before.get(NUM_SERVING) != row.get(NUM_SERVING) or any(
            row.get(key, 0) < before.get(key, 0) for key in TOTALS
        ):
            parts.append([])
        parts[-1].append(row)
    return parts


def serving_generators(rows: Sequence[Row], config: Config) -> int:
    """In one stretch; before its first row, those of the configuration."""
    return int(rows[-1].get(NUM_SERVING) or config.generator.count) if rows else config.generator.count


def _workload(run_dir: Path, config: Config, rows: Sequence[Row], no_signal_fraction: float) -> Workload:
    prompts = load_prompts(train_file(run_dir))
    held_out = load_prompts(eval_file(run_dir)) if eval_file(run_dir).is_file() else []
    median, sigma = fit_lengths(
        mean=_mean(rows, "length/mean"),
        longest=_mean(rows, "length/max"),
        truncated_fraction=_mean(rows, "length/truncated_fraction"),
        num_completions=config.learner.batch_size * config.algorithm.group_size,
        max_tokens=config.generator.max_tokens,
    )
    ess = [size for size in _values(rows, "policy/effective_sample_size") if size > 0]
    log_ess = -fmean(map(math.log, ess)) if ess else 0.0
    return Workload(
        prompt_tokens=round(fmean(len(prompt.token_ids) for prompt in prompts)),
        length_median=median,
        length_sigma=sigma,
        max_tokens=config.generator.max_tokens,
        no_signal_fraction=no_signal_fraction,
        log_ess_per_version=log_ess / (_mean(rows, "staleness/mean") + 1),
        num_eval_prompts=len(first_of_each(held_out, config.run.eval_prompts)),
    )


def fit_lengths(
    *, mean: float, longest: float, truncated_fraction: float, num_completions: int, max_tokens: int
) -> tuple[float, float]:
    """Median and σ of the rounded and cut lognormal that has this mean and this tail.

    The tail is the share of completions that were cut, where one in a step was; else the mean of a step's longest one.
    Both grow with σ while the mean stays.

    Args:
        longest: of `num_completions`; the mean over the steps.
    """
    normals = _normal_quantiles((np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES)
    normals_of_longest = _normal_quantiles(((np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES) ** (1 / num_completions))
    is_cut = truncated_fraction * num_completions > 1

    def lengths(median: float, sigma: float, normals: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(np.rint(median * np.exp(sigma * normals)), 1, max_tokens)

    def median_of(sigma: float) -> float:
        def mean_excess(log_median: float) -> float:
            return float(lengths(math.exp(log_median), sigma, normals).mean()) - mean

        return math.exp(_rising_root(mean_excess, 0.0, math.log(max_tokens) + 4 * sigma))

    def tail_excess(sigma: float) -> float:
        median = median_of(sigma)
        if is_cut:
            return float((lengths(median, sigma, normals) == max_tokens).mean()) - truncated_fraction
        return float(lengths(median, sigma, normals_of_longest).mean()) - longest

    sigma = _rising_root(tail_excess, 0.0, MAX_SIGMA)
    return median_of(sigma), sigma


def _rising_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises is 0, to 1e-7 of the interval; else the end that is nearer."""
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return (low + high) / 2


def _normal_quantiles(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray([NormalDist().inv_cdf(level) for level in levels])


def _no_signal_fraction(ledger: Path, config: Config, rows: Sequence[Row]) -> float:
    if config.algorithm.zero_variance != "refill":
        return _mean(rows, "reward/zero_variance_fraction")
    with closing(sqlite3.connect(ledger)) as db:
        states = dict(db.execute("SELECT state, count(*) FROM prompts GROUP BY state"))
    filtered = states.get("filtered", 0)
    return filtered / max(1, filtered + states.get("trained", 0) + states.get("batched", 0))


def _save_s(rows: Sequence[Row], save_every: int) -> float:
    saved = [row["time/save_s"] for row in rows if save_every and row["step"] % save_every == 0]
    return fmean(saved) if saved else 0.0


def _rise(first: Row, rows: Sequence[Row], key: str) -> float:
    return float(rows[-1][key] - first[key])


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _mean(rows: Sequence[Row], key: str) -> float:
    values = _values(rows, key)
    return fmean(values) if values else 0.0
