"""Environments for the tests of episodes: one for each kind of observation, and one for each way to begin."""

from typing import Any

from asyncrl.environments.base import Action, Observation, Row, Step


class Tells:
    """Tells the same in each turn, and pays 0.5; `done` ends."""

    def __init__(self, observation: Any = "ok", opening: Any = None) -> None:
        self._observation: Observation = observation
        self._opening: Observation | None = opening

    async def reset(self, row: Row) -> Observation | None:
        return self._opening

    async def step(self, action: Action) -> Step:
        return Step(self._observation, reward=0.5, done=action.text == "done")


class BeginsAnyhow(Tells):
    """Each time with other words."""

    num_made = 0

    async def reset(self, row: Row) -> str:
        BeginsAnyhow.num_made += 1
        return "a" * BeginsAnyhow.num_made


class Sees(Tells):
    """Tells which row it was given, and which token ids the action had."""

    async def reset(self, row: Row) -> None:
        self._row = row

    async def step(self, action: Action) -> Step:
        row = self._row
        return Step(
            f"{row.number} {row.prompt} {row.answer} {row.seed} level: {row.columns.get('level')} {action.token_ids}"
        )
