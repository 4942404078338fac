"""The checks of `config/checks/check.py` for the `environment` section."""

from __future__ import annotations

from dataclasses import replace

from asyncrl.config.environment import EnvironmentConfig
from asyncrl.config.schema import Config, RewardConfig

ENVIRONMENT_POSITIVE = (
    "environment.max_turns",
    "environment.max_turn_tokens",
    "environment.time_limit_s",
    "environment.episode_time_limit_s",
    "environment.num_workers",
)


def environment_problems(config: Config) -> list[str]:
    """What `environment` forbids the other sections, and what has no effect without it."""
    environment, algorithm = config.environment, config.algorithm
    if environment.name is None:
        if algorithm.credit == "turn":
            return [
                "algorithm.credit=turn needs turns, which environment.name brings; set it, or algorithm.credit=episode"
            ]
        if environment != EnvironmentConfig():
            return ["environment: its keys have no effect without environment.name; set it or leave them out"]
        return []
    problems = []
    if replace(config.reward, max_failures=0) != replace(RewardConfig(), max_failures=0):
        problems.append(
            f"reward: {environment.name} scores its episodes itself, and of `reward` only max_failures holds; leave "
            "reward.terms, reward.num_workers and reward.time_limit_s out"
        )
    if algorithm.credit == "turn" and algorithm.advantage == "pass_at_k":
        problems.append(
            "algorithm.credit=turn with algorithm.advantage=pass_at_k: the best of k is of whole episodes; set "
            "algorithm.credit=episode or another advantage"
        )
    most, longest = environment.max_turn_tokens, config.generator.max_tokens
    if most is not None and most > longest:
        problems.append(
            f"environment.max_turn_tokens={most} is above generator.max_tokens={longest}, which bounds the whole "
            "episode; lower the one or raise the other"
        )
    return problems
