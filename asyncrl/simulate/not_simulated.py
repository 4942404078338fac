"""Which keys of a configuration change what a run takes, and leave its simulation as it is: one sentence for each.

A key that a measured run has as well is in its rates. So only what differs from that run is named, or without one what
differs from the default.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from asyncrl.config.schema import Config
from asyncrl.simulate.passes import num_mini_batches
from asyncrl.simulate.timings import Timings, Workload

KEYS = {
    "learner.micro_batch_tokens": "padding, and that small micro-batches are slower",
    "learner.keep_gathered": "collectives between the ranks",
    "learner.context_parallel": "what ranks exchange in each layer",
    "learner.offload": "copies between CPU and GPU",
    "learner.offload_reference": "copies between CPU and GPU",
    "learner.num_threads": "more threads than one",
    "generator.engine": "the engine's own speed",
    "generator.top_k": "what the tokens that are left cost on their way to the learner, and spare its output head",
    "generator.enforce_eager": "the cost of decoding without CUDA graphs",
    "publish.kv_cache": "caches that are computed anew at a publish",
    "publish.staged": "whether generation stands still while weights travel",
    "replay.durability": "what a batch waits for the disk",
    "environment.name": "turns, and what the environment does between them",
    "environment.max_turns": "turns, and what the environment does between them",
    "data.curriculum_visits": "prompts that are skipped",
    "cluster.share_gpu": "that the two roles slow each other down",
    "model.dtype": "the speed of arithmetic in this type",
    "model.attention": "the speed of this kernel",
}
"""What is not simulated of a key."""

SLOW_REWARDS = ("judge", "code")


def not_simulated(config: Config, measured: Config | None, timings: Timings, workload: Workload) -> list[str]:
    """
    Args:
        config: that is simulated.
        measured: of the run that the rates come from; None = they are a data sheet's.
    """
    base = measured or Config()
    named = [
        f"{key}={_shown(value)}: {what}"
        for key, what in KEYS.items()
        if (value := attrgetter(key)(config)) != attrgetter(key)(base)
    ]
    return [*named, *_step(config, measured), *_workload(config, measured, timings, workload)]


def _step(config: Config, measured: Config | None) -> list[str]:
    def num_updates(one: Config) -> int:
        return one.learner.epochs_per_batch * num_mini_batches(one)

    lines = []
    if num_updates(config) != (1 if measured is None else num_updates(measured)):
        lines.append(f"{num_updates(config)} optimizer updates in a step: what each takes besides its passes")
    for key in ("zero_variance", "overlong"):
        value = getattr(config.algorithm, key)
        if value in ("filter", "mask") and (measured is None or getattr(measured.algorithm, key) != value):
            lines.append(f"algorithm.{key}={value}: that what is not trained need not be computed")
    if config.publish.engine == "delta" and (measured is None or measured.publish.engine != "delta"):
        lines.append("publish.engine=delta: that only a part of the weights travels")
    return lines


def _workload(config: Config, measured: Config | None, timings: Timings, workload: Workload) -> list[str]:
    lines = []
    if config.run.save_every and timings.save_s == 0:
        lines.append(f"run.save_every={config.run.save_every}: what a checkpoint takes")
    if config.run.eval_every and workload.num_eval_prompts == 0:
        lines.append(
            f"run.eval_every={config.run.eval_every}: evaluations; set run.eval_prompts to have them simulated"
        )
    if measured is None and config.algorithm.zero_variance == "refill":
        lines.append("algorithm.zero_variance=refill: groups without a signal, which are replaced")
    slow = [term.function for term in config.reward.terms if term.function in SLOW_REWARDS or ":" in term.function]
    if slow and (measured is None or config.reward.terms != measured.reward.terms):
        lines.append(f"reward.terms ({', '.join(slow)}): what scoring takes")
    return lines


def _shown(value: Any) -> str:
    """As it is written in an override."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
