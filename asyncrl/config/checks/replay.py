"""The sections `replay` and `publish`: the bounds of η, and how often a version is published under them."""

from __future__ import annotations

from asyncrl.config.schema import Config, ReplayConfig


def staleness_problems(replay: ReplayConfig) -> list[str]:
    smallest = f"replay.min_staleness={replay.min_staleness}"
    if replay.ess_target is None and replay.min_staleness > 0:
        return [f"{smallest} is the smallest η of the controller, which is off; set replay.ess_target, such as 0.9"]
    if replay.min_staleness > replay.max_staleness:
        return [f"{smallest} is above replay.max_staleness={replay.max_staleness}; lower it"]
    return []


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
