"""What runs inside an environment process: many episodes, one call at a time, each call under a time limit.

The process holds an episode's environment from its first call to its last. One that it does not know, because it is
newer than the episode, it makes anew and plays again up to the present call.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
import traceback
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NoReturn

from asyncrl.config.environment import EnvironmentConfig
from asyncrl.environments.base import Action, Environment, Observation, Row, Step
from asyncrl.environments.resolve import make
from asyncrl.types import MESSAGE_ROLES, beyond_float32

log = logging.getLogger(__name__)

_MAX_REASON_CHARS = 500
"""Reasons travel to the ledger and the log; an exception's text may hold a whole observation."""
_MAX_OBSERVATION_CHARS = 1_000_000
"""Tokenizing a longer text would hold up the generator's event loop, and no context takes it."""


@dataclass(frozen=True)
class Call:
    """The next call of an episode, with all that went before."""

    episode_id: str
    row: Row
    actions: list[Action]
    """Empty = `reset`; else `step` with the last of them."""
    observed: list[Observation | None]
    """What the calls before this one answered."""


@dataclass(frozen=True)
class Answer:
    """What a call came to."""

    step: Step
    elapsed_s: float


@dataclass(frozen=True)
class EpisodeFailure:
    """An episode that cannot go on."""

    reason: str


class _TimeLimitError(BaseException):
    """Not an Exception, so that an environment's own `except Exception` does not swallow it."""


_config = EnvironmentConfig()
_episodes: dict[str, Environment] = {}
_loop: asyncio.AbstractEventLoop


def start(config: EnvironmentConfig) -> None:
    """Imports the environment once, outside of any time limit, when the process starts."""
    global _config, _loop
    _config, _loop = config, asyncio.new_event_loop()
    asyncio.set_event_loop(_loop)
    make(config)


def advance(call: Call) -> Answer | EpisodeFailure:
    """Makes the call; after a failure, and when the episode is done, the environment is closed and gone."""
    try:
        if call.episode_id not in _episodes:
            with _alarm():
                _episodes[call.episode_id] = make(_config)
            _replay(call)
        started = time.perf_counter()
        step = _next(_episodes[call.episode_id], call.row, call.actions)
        elapsed_s = time.perf_counter() - started
        if step.done:
            forget(call.episode_id)
    except BaseException as error:  # noqa: BLE001  a user's environment may raise anything, SystemExit included
        forget(call.episode_id)
        return EpisodeFailure(_reason(error))
    return Answer(step, elapsed_s)


def forget(episode_id: str) -> None:
    """Closes and drops an environment. Its episode is over: a `close` that fails is logged, and no more."""
    close = getattr(_episodes.pop(episode_id, None), "close", None)
    if close is not None:
        try:
            _run(close())
        except BaseException as error:  # noqa: BLE001  as in `advance`
            log.warning("environment.name: `close` failed: %s", _reason(error))


def _reason(error: BaseException) -> str:
    if isinstance(error, _TimeLimitError):
        return f"took longer than environment.time_limit_s = {_config.time_limit_s:g} s"
    return "".join(traceback.format_exception_only(error)).strip()[:_MAX_REASON_CHARS]


def _replay(call: Call) -> None:
    """Brings a new environment into the state in which the call finds it."""
    environment = _episodes[call.episode_id]
    for number, observed in enumerate(call.observed):
        step = _next(environment, call.row, call.actions[:number])
        if step.done or step.observation != observed:
            raise RuntimeError(
                "its process was lost to another episode, and played again it answered otherwise: "
                "the environment is not deterministic"
            )


def _next(environment: Environment, row: Row, actions: list[Action]) -> Step:
    if not actions:
        observation = _run(environment.reset(row))
        return Step(None if observation is None else _checked_observation(observation))
    return _checked(_run(environment.step(actions[-1])))


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    task = _loop.create_task(call)
    try:
        with _alarm():
            return _loop.run_until_complete(task)
    finally:
        task.cancel()  # where the alarm came between two of its steps; else it has ended


@contextmanager
def _alarm() -> Iterator[None]:
    signal.signal(signal.SIGALRM, _on_alarm)  # anew each time: an environment may have set its own
    signal.setitimer(signal.ITIMER_REAL, _config.time_limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _on_alarm(signum: int, frame: object) -> NoReturn:
    raise _TimeLimitError


def _checked(step: Any) -> Step:
    """The step in plain types, which travel.

    Raises:
        TypeError, ValueError: it is none, its reward is no finite float32, or it neither ends nor goes on.
    """
    if not isinstance(step, Step):
        raise TypeError(f"step returned {step!r}, not a Step")
    if not isinstance(step.reward, Real) or not math.isfinite(step.reward):
        raise ValueError(f"the reward is {step.reward!r}, not a finite number")
    if (problem := beyond_float32(float(step.reward))) is not None:
        raise ValueError(problem)
    observation = None if step.done else _checked_observation(step.observation)
    return Step(observation, float(step.reward), bool(step.done))


def _checked_observation(observation: Any) -> Observation:
    if isinstance(observation, str) and 0 < len(observation) <= _MAX_OBSERVATION_CHARS:
        observation.encode()  # half of a surrogate pair takes no tokenizer
        return observation
    if isinstance(observation, list) and 0 < len(observation) <= _MAX_OBSERVATION_CHARS:
        if all(isinstance(item, Integral) for item in observation):
            return [int(token) for token in observation]
        if all(_is_message(item) for item in observation):
            unknown = [message["role"] for message in observation if message["role"] not in MESSAGE_ROLES]
            if unknown:
                roles = ", ".join(MESSAGE_ROLES)
                raise ValueError(f"the observation has the unknown role {unknown[0]!r}; use one of {roles}")
            return [dict(message) for message in observation]
    raise ValueError(
        f"the observation {observation!r:.200} is neither text, token ids nor messages with role and content, "
        f"or it is empty or longer than {_MAX_OBSERVATION_CHARS:,}"
    )


def _is_message(item: Any) -> bool:
    is_text = isinstance(item, dict) and all(isinstance(value, str) for value in item.values())
    return is_text and {"role", "content"} <= set(item)
