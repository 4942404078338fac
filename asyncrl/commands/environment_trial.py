"""An environment that cannot work, found before anything heavy starts."""

from __future__ import annotations

import asyncio
from typing import Any

from asyncrl.config.environment import EnvironmentConfig
from asyncrl.environments.base import Action, Row, as_columns
from asyncrl.environments.pool import EnvironmentPool, EpisodeFailedError
from asyncrl.errors import ConfigError
from asyncrl.generate.observation_tokens import ObservationTokens
from asyncrl.types import Prompt


def try_environment(config: EnvironmentConfig, prompt: Prompt, tokenizer: Any = None) -> None:
    """Plays the first turn of an episode, in a process as a run's; the prompt, said back, is the action.

    Args:
        tokenizer: the model's, if it is here: it must be able to read what the environment says.

    Raises:
        ConfigError: the environment failed.
    """
    pool = EnvironmentPool(config)
    tokens = None if tokenizer is None else ObservationTokens(tokenizer)

    async def play() -> None:
        row = Row(prompt.row, prompt.text, prompt.answer, seed=0, columns=as_columns(prompt.columns))
        with pool.episode("trial", row) as episode:
            opening = await episode.reset()
            if tokens is not None and opening is not None:
                tokens.opening(opening)
            step = await episode.step(Action(prompt.text, prompt.token_ids))
            if tokens is not None and step.observation is not None:
                tokens.reply(step.observation, after_eos=True)

    try:
        asyncio.run(play())
    except EpisodeFailedError as error:
        raise ConfigError(
            f"environment.name: {config.name} failed when it was tried on row {prompt.row} of data.train, the prompt "
            f"as the action: {error}. An environment answers any text that a model may write"
        ) from error
    finally:
        pool.close()
