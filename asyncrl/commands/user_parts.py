"""What a configuration names of the user's own, or of optional packages, is there before anything heavy starts."""

from __future__ import annotations

from asyncrl.config.schema import Config
from asyncrl.environments.resolve import make
from asyncrl.rewards.functions import resolve
from asyncrl.run.trackers.open import check_trackers


def check_user_parts(config: Config) -> None:
    """Reward functions, the environment and trackers.

    Raises:
        ConfigError: one cannot be imported, made or found; names its key.
    """
    for term in config.reward.terms:
        resolve(term)
    if config.environment.name is not None:
        make(config.environment)
    check_trackers(config.run)
