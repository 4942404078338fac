"""A simulated run in figures, as `bench/pipeline/overlap.py` defines those of a real one. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from asyncrl.simulate.records import SimulatedRun

STEPS_A_VERSION = 2
"""The queue has settled after so many steps for each version that generation may run ahead."""


@dataclass(frozen=True)
class Figures:
    """Of the steps after the warm-up; seconds are means over them."""

    num_steps: int
    step_s: float
    """T."""
    samples_per_s: float
    tokens_per_s: float
    """Trained ones."""
    generation_s: float
    """G: the tokens of a step ÷ the tokens per second of all generators while busy."""
    learning_s: float
    """L: a step of the learner without its waits."""
    overlap_efficiency: float
    """max(G, L) ÷ T."""
    learner_idle: float
    """Share of the time: waiting for a batch or a publish."""
    generator_idle: float
    """Share of the time: no lease in hand, not paused."""
    generator_paused: float
    staleness_mean: float
    staleness_max: int
    tokens_by_lag: list[int]
    queue_depth: float
    num_masked_tokens: int
    """Over the bound, in the measured steps."""
    num_requeued: int
    """Groups sampled again, in the whole run."""
    num_resampled_tokens: int
    """Of them."""
    dollars_per_million_tokens: float | None
    """Trained ones."""


def figures(run: SimulatedRun, dollars_per_hour: float | None = None) -> Figures:
    """
    Args:
        run: of two steps at least.
        dollars_per_hour: for all of the hardware together.
    """
    num_warmup = min(STEPS_A_VERSION * (run.setting.config.replay.max_staleness + 1), len(run.steps) // 2)
    first, steps = run.steps[num_warmup - 1], run.steps[num_warmup:]
    num_steps, elapsed_s = len(steps), steps[-1].end_s - first.end_s
    num_tokens = sum(step.num_tokens for step in steps)
    lags = [0] * (1 + max(lag for step in steps for lag in step.tokens_by_lag))
    for step in steps:
        for lag, count in step.tokens_by_lag.items():
            lags[lag] += count
    before, after = first.fleet, steps[-1].fleet
    generated, generators_s = after.num_tokens - before.num_tokens, after.elapsed_s - before.elapsed_s
    num_generators = run.setting.config.generator.count
    busy_per_token_s = (after.busy_s - before.busy_s) / max(generated, 1)
    generation_s = num_tokens * busy_per_token_s / num_generators / num_steps
    waited_s = sum(step.wait_s + step.publish_wait_s for step in steps)
    learning_s = (elapsed_s - waited_s) / num_steps
    trained = num_tokens - sum(step.num_masked_tokens for step in steps)
    cost = None if dollars_per_hour is None else dollars_per_hour / 3600 * elapsed_s / max(trained, 1) * 1e6
    return Figures(
        num_steps=num_steps,
        step_s=elapsed_s / num_steps,
        samples_per_s=sum(step.num_samples for step in steps) / elapsed_s,
        tokens_per_s=trained / elapsed_s,
        generation_s=generation_s,
        learning_s=learning_s,
        overlap_efficiency=max(generation_s, learning_s) * num_steps / elapsed_s,
        learner_idle=waited_s / elapsed_s,
        generator_idle=(after.idle_s - before.idle_s) / generators_s,
        generator_paused=(after.paused_s - before.paused_s) / generators_s,
        staleness_mean=statistics.fmean(step.lag_mean for step in steps),
        staleness_max=len(lags) - 1,
        tokens_by_lag=lags,
        queue_depth=statistics.fmean(step.queue_depth for step in steps),
        num_masked_tokens=num_tokens - trained,
        num_requeued=run.num_requeued,
        num_resampled_tokens=run.num_resampled_tokens,
        dollars_per_million_tokens=cost,
    )
