"""Environments of OpenEnv (openenv-core) as `environment.name=openenv:URL`. An episode is a session of the server."""

from __future__ import annotations

import inspect
import json
from typing import Any

from openenv.core.generic_client import GenericEnvClient

from asyncrl.environments.base import Action, Observation, Row, Step

NUM_TRAIN_ROWS = 1000
NUM_TEST_ROWS = 100
_SEEDS = 1 << 31
"""Servers hand the seed to generators that take no more."""


class OpenEnv:
    """One session.

    Args:
        url: of the server, http(s) or ws(s).
        action: the field of the server's actions that takes what the model said.
        observation: the field of its observations that the model reads; null = all of it, as JSON.
        prompt: what every episode's prompt is, with data.train=environment; the first observation follows it.
        messages: observations are messages of the user; false = text, for a model without a chat template.
        reset: further arguments of the server's reset.
    """

    def __init__(
        self,
        url: str,
        action: str,
        observation: str | None = None,
        prompt: str | None = None,
        messages: bool = True,
        reset: dict[str, Any] | None = None,
    ) -> None:
        self._client: Any = GenericEnvClient(url)
        self._action = action
        self._shown = observation
        self._prompt = prompt
        self._as_messages = messages
        self._reset = reset or {}

    def rows(self, split: str, seed: int) -> list[tuple[str, str]]:
        """The same prompt each time: what tells episodes apart is the seed that the server is reset with."""
        if self._prompt is None:
            raise ValueError("data.train=environment needs environment.args.prompt, what an episode begins with")
        return [(self._prompt, ".")] * (NUM_TEST_ROWS if split == "test" else NUM_TRAIN_ROWS)

    async def reset(self, row: Row) -> Observation | None:
        """The row's prompt and the first observation."""
        try:
            result = await _done(self._client.reset(seed=row.seed % _SEEDS, **self._reset))
        except ConnectionError as error:
            raise ConnectionError(f"{error}; start the server, or mend the URL of environment.name") from error
        shown = self._text(result.observation)
        return self._observation(f"{row.prompt}{shown}") if shown else None

    async def step(self, action: Action) -> Step:
        """One step of the server's."""
        try:
            result = await _done(self._client.step({self._action: action.text}))
        except RuntimeError as error:  # whatever the server answers an action with
            raise ValueError(f"the server refused an action with the field {self._action}: {error}") from error
        reward = 0.0 if result.reward is None else float(result.reward)
        if result.done:
            return Step(reward=reward, done=True)
        return Step(self._observation(self._text(result.observation)), reward)

    async def close(self) -> None:
        """Ends the session; the server makes room for another."""
        await _done(self._client.close())

    def _text(self, observation: dict[str, Any]) -> str:
        if self._shown is None:
            return json.dumps(observation)
        if self._shown not in observation:
            fields = ", ".join(observation) or "none"
            raise KeyError(f"environment.args.observation={self._shown}: the observation has the fields {fields}")
        shown = observation[self._shown]
        return shown if isinstance(shown, str) else json.dumps(shown)

    def _observation(self, text: str) -> Observation:
        return [{"role": "user", "content": text}] if self._as_messages else text


async def _done(call: Any) -> Any:
    """The client's calls are coroutines from openenv-core 0.2.2 on."""
    return await call if inspect.isawaitable(call) else call
