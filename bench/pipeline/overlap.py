"""A run's rows of metrics.jsonl → its throughput, and how well generation and learning overlapped. Pure.

    T   wall seconds of one step
    L   learner seconds of one step: training, gathering, saving; not its waits, nor its publishing thread
    G   generator seconds of one step: the tokens of a step ÷ the tokens per second of all generators while busy.
        A generator is busy while it has a lease in hand and no publish pauses it (asyncrl/generate/utilization.py).

Perfect overlap takes T = max(G, L), none takes G + L; overlap efficiency = max(G, L) ÷ T. G and L are measured while
both sides run, so what they cost each other (shared cores, memory, link) is in them, not in the efficiency.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFigures:
    """Of the measured steps; seconds are means over them unless they say otherwise."""

    num_steps: int
    samples_per_s: float
    generator_tokens_per_s: float
    """Finished by all generators together, over wall time."""
    learner_tokens_per_s: float
    """Consumed, over wall time."""
    step_s: float
    """T."""
    step_median_s: float
    generation_s: float
    """G."""
    learning_s: float
    """L."""
    overlap_efficiency: float
    train_s: float
    gather_s: float
    save_s: float
    publish_s: float
    """Of the last version that was published, beside training; gathering excepted."""
    wait_s: float
    """For the batch."""
    publish_wait_s: float
    """For the publish of the version before."""
    control_s: float
    """The rest of a step."""
    commit_s: float
    """Replay's, writing its ledger, beside all this."""
    batch_held_s: float
    """Of `wait_s`: the batch was ready, and not durable yet."""
    generator_idle: float
    """Share of wall time, mean of the generators: no lease in hand, not paused."""
    generator_paused: float
    """Share of wall time, mean of the generators: paused for a publish."""
    learner_idle: float
    """Share of wall time: waiting for a batch or a publish."""
    staleness_mean: float
    staleness_max: float
    staleness_violations: float
    """Tokens over the bound, all measured steps together."""


def run_figures(rows: Sequence[Row], num_warmup_steps: int, num_generators: int) -> RunFigures:
    """Figures of the steps after the warm-up.

    Args:
        rows: step 1 first.
        num_warmup_steps: ≥ 1; the generators' totals are counted from the last of these rows.
        num_generators: whose totals the rows hold as sums.
    """
    first, measured = rows[num_warmup_steps - 1], rows[num_warmup_steps:]
    num_steps = len(measured)
    step_s = _sum(measured, "time/step_s")
    num_tokens = sum(row["throughput/learner_tokens_per_s"] * row["time/step_s"] for row in measured)
    num_samples = sum(row["throughput/samples_per_s"] * row["time/step_s"] for row in measured)
    tokens, busy_s, paused_s, elapsed_s = (
        measured[-1][f"generator/{key}"] - first[f"generator/{key}"]
        for key in ("tokens_total", "busy_total_s", "paused_total_s", "elapsed_total_s")
    )
    generation_s = num_tokens * busy_s / tokens / num_generators
    train_s, gather_s, save_s, publish_s, wait_s, publish_wait_s = (
        _sum(measured, f"time/{part}_s") for part in ("train", "gather", "save", "publish", "wait", "publish_wait")
    )
    commit_s, batch_held_s = (
        measured[-1][f"queue/{key}"] - first[f"queue/{key}"] for key in ("commit_total_s", "batch_held_total_s")
    )
    learning_s = train_s + gather_s + save_s
    return RunFigures(
        num_steps=num_steps,
        samples_per_s=num_samples / step_s,
        generator_tokens_per_s=tokens / (elapsed_s / num_generators),
        learner_tokens_per_s=num_tokens / step_s,
        step_s=step_s / num_steps,
        step_median_s=statistics.median(row["time/step_s"] for row in measured),
        generation_s=generation_s / num_steps,
        learning_s=learning_s / num_steps,
        overlap_efficiency=max(generation_s, learning_s) / step_s,
        train_s=train_s / num_steps,
        gather_s=gather_s / num_steps,
        save_s=save_s / num_steps,
        publish_s=publish_s / num_steps,
        wait_s=wait_s / num_steps,
        publish_wait_s=publish_wait_s / num_steps,
        control_s=(step_s - learning_s - wait_s - publish_wait_s) / num_steps,
        commit_s=commit_s / num_steps,
        batch_held_s=batch_held_s / num_steps,
        generator_idle=1.0 - (busy_s + paused_s) / elapsed_s,
        generator_paused=paused_s / elapsed_s,
        learner_idle=(wait_s + publish_wait_s) / step_s,
        staleness_mean=_sum(measured, "staleness/mean") / num_steps,
        staleness_max=max(row["staleness/max"] for row in measured),
        staleness_violations=_sum(measured, "staleness/violations"),
    )


def _sum(rows: Sequence[Row], key: str) -> float:
    return float(sum(row[key] for row in rows))
