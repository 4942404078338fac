"""The sections `run` and `reward`: what an evaluation, a reward and a tracker need."""

from __future__ import annotations

from asyncrl.config.schema import Config

TRACKERS = ("tensorboard", "wandb", "trackio")
MAX_PORT = 65535


def run_problems(config: Config) -> list[str]:
    problems = []
    if config.run.eval_every > 0 and config.data.eval is None:
        problems.append(f"run.eval_every={config.run.eval_every} needs data.eval; set it, or run.eval_every=0")
    if not config.reward.terms:
        problems.append("reward.terms is empty; name at least one function, such as numeric")
    for name in config.run.trackers:
        if name not in TRACKERS:
            problems.append(f"run.trackers: unknown tracker {name!r}; use {', '.join(TRACKERS)}")
    port = config.run.prometheus_port
    if port is not None and not 1 <= port <= MAX_PORT:
        problems.append(f"run.prometheus_port={port} is no TCP port; use 1 to {MAX_PORT}, or null")
    return problems
