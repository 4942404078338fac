"""A simulated run for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from asyncrl.simulate.figures import Figures
from asyncrl.simulate.records import SimulatedRun, StepRecord

NUM_TIMELINE_STEPS = 12
BAR_WIDTH = 48


def to_json(run: SimulatedRun, result: Figures, not_simulated: list[str]) -> str:
    """The figures, the timings and workload that they follow from, and what is in none of them."""
    setting = run.setting
    inputs = {"timings": asdict(setting.timings), "workload": asdict(setting.workload)}
    return json.dumps(
        {**asdict(result), "num_late_leases": run.num_late_leases, "not_simulated": not_simulated, **inputs}, indent=1
    )


def print_run(run: SimulatedRun, result: Figures, not_simulated: list[str], console: Console) -> None:
    """A table, a timeline of the last steps, and what should not be overlooked."""
    table = Table(title=f"Simulated: {_setting(run)}", title_justify="left", title_style="bold", show_header=False)
    for name, value in _lines(result):
        table.add_row(name, value)
    console.print(table)
    console.print("The last steps of the learner: █ trains, ░ waits for its batch, ▒ waits for a publish")
    for line in timeline(run.steps[-NUM_TIMELINE_STEPS:]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if run.num_late_leases:
        console.print(
            f"• {run.num_late_leases} leases took longer than replay.lease_timeout_s = "
            f"{run.setting.config.replay.lease_timeout_s:g}: a real run would sample their prompts again",
            highlight=False,
        )
    print_not_simulated(not_simulated, console)


def print_not_simulated(lines: list[str], console: Console) -> None:
    """A line for each."""
    for line in lines:
        console.print(f"• not simulated: {line}", highlight=False, markup=False, soft_wrap=True)


def timeline(steps: list[StepRecord]) -> list[str]:
    """A line a step, all on one scale."""
    longest_s = max(step.end_s - step.start_s for step in steps)
    return [
        f"step {step.step + 1:5}  {_bar(step, BAR_WIDTH / longest_s):{BAR_WIDTH}}  {step.end_s - step.start_s:8.2f} s  "
        f"mean lag {step.lag_mean:.2f}, {step.queue_depth} groups left in the queue"
        for step in steps
    ]


def _bar(step: StepRecord, columns_per_s: float) -> str:
    waited, published = (round(columns_per_s * seconds) for seconds in (step.wait_s, step.publish_wait_s))
    whole = round(columns_per_s * (step.end_s - step.start_s))
    return "░" * waited + "█" * max(0, whole - waited - published) + "▒" * published


def _setting(run: SimulatedRun) -> str:
    config = run.setting.config
    generator = config.generator
    return (
        f"generators {generator.count} × TP {generator.tensor_parallel}, learners {config.learner.count}, "
        f"B = {config.learner.batch_size}, G = {config.algorithm.group_size}, η = {config.replay.max_staleness}"
    )


def _lines(result: Figures) -> list[tuple[str, str]]:
    total = sum(result.tokens_by_lag)
    lags = [f"{lag}: {count / total:.1%}" for lag, count in enumerate(result.tokens_by_lag) if count]
    bound = "generators" if result.generation_s > result.learning_s else "learners"
    lines = [
        ("step", f"{result.step_s:.3g} s, mean of {result.num_steps}"),
        ("samples/s", f"{result.samples_per_s:,.4g}"),
        ("trained tokens/s", f"{result.tokens_per_s:,.0f}"),
        (
            "a step's generation, learning",
            f"{result.generation_s:.3g} s, {result.learning_s:.3g} s: the {bound} decide",
        ),
        ("overlap", f"{result.overlap_efficiency:.1%} of max(generation, learning) ÷ step"),
        ("learners idle", f"{result.learner_idle:.1%}"),
        ("generators idle, paused", f"{result.generator_idle:.1%}, {result.generator_paused:.1%}"),
        ("staleness", f"mean {result.staleness_mean:.2f}, at most {result.staleness_max}"),
        ("tokens by lag", ", ".join(lags)),
        ("groups left in the queue", f"{result.queue_depth:.1f}"),
        ("tokens masked", f"{result.num_masked_tokens:,}"),
        ("sampled again", f"{result.num_requeued:,} groups, {result.num_resampled_tokens:,} tokens"),
    ]
    if result.dollars_per_million_tokens is not None:
        lines.append(("$ per 1M trained tokens", f"{result.dollars_per_million_tokens:.3g}"))
    return lines
