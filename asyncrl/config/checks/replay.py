"""The section `replay`: the bounds of η."""

from __future__ import annotations

from asyncrl.config.schema import ReplayConfig


def staleness_problems(replay: ReplayConfig) -> list[str]:
    smallest = f"replay.min_staleness={replay.min_staleness}"
    if replay.ess_target is None and replay.min_staleness > 0:
        return [f"{smallest} is the smallest η of the controller, which is off; set replay.ess_target, such as 0.9"]
    if replay.min_staleness > replay.max_staleness:
        return [f"{smallest} is above replay.max_staleness={replay.max_staleness}; lower it"]
    return []
