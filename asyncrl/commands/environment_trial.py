"""An environment that cannot work, found before anything heavy starts."""

from __future__ import annotations

import asyncio

from asyncrl.config.environment import EnvironmentConfig
from asyncrl.environments.base import Action, Row, as_columns
from asyncrl.environments.pool import EnvironmentPool, EpisodeFailedError
from asyncrl.errors import ConfigError
from asyncrl.types import Prompt


def try_environment(config: EnvironmentConfig, prompt: Prompt) -> None:
    """Plays the first turn of an episode, in a process as a run's; the prompt, said back, is the action.

    Raises:
        ConfigError: the environment failed.
    """
    pool = EnvironmentPool(config)

    async def play() -> None:
        row = Row(prompt.row, prompt.text, prompt.answer, seed=0, columns=as_columns(prompt.columns))
        with pool.episode("trial", row) as episode:
            await episode.reset()
            await episode.step(Action(prompt.text, prompt.token_ids))

    try:
        asyncio.run(play())
    except EpisodeFailedError as error:
        raise ConfigError(
            f"environment.name: {config.name} failed when it was tried on row {prompt.row} of data.train, the prompt "
            f"as the action: {error}. An environment answers any text that a model may write"
        ) from error
    finally:
        pool.close()
