"""The section `replay`: the bounds of η, and how far prompts may overtake each other."""

from __future__ import annotations

from asyncrl.config.schema import Config, ReplayConfig


def staleness_problems(replay: ReplayConfig) -> list[str]:
    smallest = f"replay.min_staleness={replay.min_staleness}"
    if replay.ess_target is None and replay.min_staleness > 0:
        return [f"{smallest} is the smallest η of the controller, which is off; set replay.ess_target, such as 0.9"]
    if replay.min_staleness > replay.max_staleness:
        return [f"{smallest} is above replay.max_staleness={replay.max_staleness}; lower it"]
    return []


def window_problems(config: Config) -> list[str]:
    """What a window takes from admission must leave a whole batch for each publish."""
    replay, batch_size, every = config.replay, config.learner.batch_size, config.publish.every
    if replay.stragglers != "window":
        return [f"replay.window={replay.window} is read only with replay.stragglers=window"] if replay.window else []
    key = "max_staleness" if replay.ess_target is None else "min_staleness"
    eta = getattr(replay, key)
    largest = max(0, (eta + 1 - every) * batch_size)
    if 1 <= replay.window <= largest:
        return []
    return [
        f"replay.window={replay.window} with replay.stragglers=window: it is 1 to (replay.{key} + 1 − publish.every)·"
        f"learner.batch_size = {largest} prompts, so that a batch for each version can always be drawn"
        + ("; raise replay." + key)
        * (largest == 0)
    ]
