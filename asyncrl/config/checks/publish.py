"""The section `publish`: how often a version is published under the bound of η."""

from __future__ import annotations

from asyncrl.config.schema import Config


def cadence_problems(config: Config) -> list[str]:
    """Between two publishes admission opens η + 1 batches, so the steps from one to the next must be no more."""
    every, replay, eval_every = config.publish.every, config.replay, config.run.eval_every
    if every < 1:
        return []
    problems = []
    key = "max_staleness" if replay.ess_target is None else "min_staleness"
    eta = getattr(replay, key)
    if every > eta + 1:
        problems.append(
            f"publish.every={every} with replay.{key}={eta}: the batches of {eta + 1} steps are admitted from one "
            f"publish to the next, so the run would stand still; set publish.every to {eta + 1} or less, or "
            f"replay.{key} to {every - 1} or more"
        )
    if eval_every % every:
        problems.append(
            f"run.eval_every={eval_every} is not divisible by publish.every={every}; only a version that is published "
            "can be evaluated"
        )
    return problems
