"""Processes that run environments, so that one that fails or never returns costs one episode.

Two limits hold, as for reward functions. Inside the process an alarm stops Python code that takes longer than
environment.time_limit_s (worker.py). Around it a hard limit kills what ignores the alarm. An episode stays in one
process; with each call goes all that it needs to be played again in another.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures.process import BrokenProcessPool

from pebble import ProcessExpired, ProcessPool

from asyncrl.config.environment import EnvironmentConfig
from asyncrl.environments.base import Action, Observation, Row, Step
from asyncrl.environments.worker import Answer, Call, EpisodeFailure, advance, forget, start

_GRACE_S = 1.0
"""What the hard limit allows beyond the alarm: for the alarm to act and the result to travel."""


class EpisodeFailedError(Exception):
    """The environment raised, took too long, ended its process or answered nonsense; says which."""


class EnvironmentPool:
    """`environment.num_workers` processes; safe to share between the tasks of one event loop."""

    def __init__(self, config: EnvironmentConfig) -> None:
        """The processes start with the first episode."""
        self._processes = [_Process(config) for _ in range(config.num_workers)]

    def episode(self, episode_id: str, row: Row) -> Episode:
        """A new episode, in the process that has the fewest. `episode_id` is used once."""
        return Episode(episode_id, row, min(self._processes, key=lambda process: process.num_episodes))

    def close(self) -> None:
        """Ends the processes at once; a call still awaited is cancelled."""
        for process in self._processes:
            process.close()


class Episode:
    """One episode from its reset to its end; a context manager."""

    def __init__(self, episode_id: str, row: Row, process: _Process) -> None:
        self._id = episode_id
        self._row = row
        self._process = process
        self._actions: list[Action] = []
        self._observed: list[Observation | None] = []
        self.elapsed_s = 0.0
        """That its calls took."""

    def __enter__(self) -> Episode:
        self._process.num_episodes += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._process.num_episodes -= 1
        self._process.forget(self._id)

    async def reset(self) -> Observation | None:
        """What the episode begins with; None = its row's prompt.

        Raises:
            EpisodeFailedError: the environment cannot begin.
        """
        return (await self._call()).observation

    async def step(self, action: Action) -> Step:
        """The environment's answer; has an observation unless it is done.

        Raises:
            EpisodeFailedError: the episode cannot go on.
        """
        self._actions.append(action)
        return await self._call()

    async def _call(self) -> Step:
        answer = await self._process.run(Call(self._id, self._row, self._actions, self._observed))
        self.elapsed_s += answer.elapsed_s
        self._observed.append(answer.step.observation)
        return answer.step


class _Process:
    """One process, and another when it is lost."""

    def __init__(self, config: EnvironmentConfig) -> None:
        self._config = config
        self._pool = self._new_pool()
        self.num_episodes = 0

    async def run(self, call: Call) -> Answer:
        limit_s = self._config.time_limit_s
        hard_limit_s = (2 + len(call.observed)) * limit_s + _GRACE_S  # an episode that is new to it is played again
        for _ in range(2):
            if not self._pool.active:
                self.close()
                self._pool = self._new_pool()
            try:
                answer = await asyncio.wrap_future(self._pool.schedule(advance, (call,), timeout=hard_limit_s))
            except TimeoutError:
                raise EpisodeFailedError(
                    f"ignored environment.time_limit_s = {limit_s:g} s; its process was killed"
                ) from None
            except ProcessExpired as error:
                raise EpisodeFailedError(f"ended its process with exit code {error.exitcode}") from error
            except BrokenProcessPool:  # the process ended between two calls, and not through this one
                continue
            if isinstance(answer, EpisodeFailure):
                raise EpisodeFailedError(answer.reason)
            return answer
        raise EpisodeFailedError(
            "the process of its environment ends as soon as it starts; the generator's log says why"
        )

    def forget(self, episode_id: str) -> None:
        if self._pool.active:
            self._pool.schedule(forget, (episode_id,), timeout=self._config.time_limit_s + _GRACE_S)

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()

    def _new_pool(self) -> ProcessPool:
        # spawn: the parent has threads and, in a generator, vLLM; a fork would inherit their locks.
        context = multiprocessing.get_context("spawn")
        return ProcessPool(1, initializer=start, initargs=(self._config,), context=context)
