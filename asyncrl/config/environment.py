"""The section `environment`: episodes of several turns in place of one completion a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EnvironmentConfig:
    """What answers the policy between its turns, and scores it. generator.max_tokens bounds a whole episode: what is
    sampled and what the environment gives, together."""

    name: str | None = None
    """module:Class | path/to/file.py:Class | reasoning_gym:TASK | verifiers:TASKSET | openenv:URL
    (docs/environments.md). null = one completion a prompt, scored by reward.terms."""
    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    max_turns: int = 8
    """Turns of an episode; one that is not done by then is truncated."""
    max_turn_tokens: int | None = None
    """Tokens sampled in one turn; null = what generator.max_tokens leaves."""
    time_limit_s: float = 10.0
    """For one call of the environment; one that takes longer is stopped and its episode quarantined."""
    episode_time_limit_s: float | None = None
    """For an episode, sampling included, looked at between its turns; then it is truncated. null = none, but
    replay.lease_timeout_s holds for its whole group."""
    num_workers: int = 1
    """Processes that run environments, per generator. Each makes one call at a time."""
