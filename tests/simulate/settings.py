"""Small settings for simulations, and what a run with them would have logged."""

from __future__ import annotations

from statistics import fmean

from asyncrl.config.load import load
from asyncrl.config.schema import Config
from asyncrl.simulate.figures import figures
from asyncrl.simulate.measured import MeasuredRun
from asyncrl.simulate.setting import Setting
from asyncrl.simulate.simulation import simulate
from asyncrl.simulate.timings import Timings, Workload

TIMINGS = Timings(
    decode_base_s=0.01,
    decode_per_sequence_s=0.001,
    prefill_per_token_s=0.0005,
    max_sequences=1000,
    train_base_s=0.1,
    train_per_token_s=0.001,
    gather_s=0.02,
    transfer_s=0.3,
    stall_s=0.05,
    intake_steps=0.0,
)
"""Engines take prompts in at once: then there are closed forms."""

WORKLOAD = Workload(prompt_tokens=10, length_median=50.0, length_sigma=0.8, max_tokens=200)


def small_config(*overrides: str) -> Config:
    sizes = ["learner.batch_size=4", "algorithm.group_size=2", "generator.max_groups_in_flight=4"]
    return load(None, ["model.path=tiny", "data.train=arithmetic", *sizes, *overrides])


def measured(timings: Timings, *overrides: str) -> MeasuredRun:
    """What a run with these timings would have logged, with lengths and rewards of another seed."""
    config = small_config(*overrides)
    result = simulate(Setting(config, timings, WORKLOAD, 200, seed=5))
    steps, shown = result.steps[50:], figures(result)
    first, last = steps[0].fleet, steps[-1].fleet
    return MeasuredRun(
        config=config,
        workload=WORKLOAD,
        num_steps=len(steps),
        step_s=shown.step_s,
        samples_per_s=shown.samples_per_s,
        staleness_mean=shown.staleness_mean,
        staleness_max=float(shown.staleness_max),
        learner_idle=shown.learner_idle,
        generator_idle=shown.generator_idle,
        tokens_per_step=fmean(step.num_tokens for step in steps),
        train_s=fmean(step.train_s for step in steps),
        gather_s=timings.gather_s,
        publish_s=timings.transfer_s + timings.stall_s,
        stall_s=timings.stall_s,
        deliver_s=0.0,
        save_s=0.0,
        busy_per_token_s=(last.busy_s - first.busy_s) / (last.num_tokens - first.num_tokens),
    )
