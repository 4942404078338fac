"""What runs inside a reward process: scores a list of completions, each under a time limit of its own.

Imports only the reward functions, so that a process starts fast and small.
"""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NoReturn

from asyncrl.rewards.functions import RewardFunction, resolve

LARGEST_REWARD = 3.4028234663852886e38
"""Float32's largest number: rewards travel and are trained on as float32, where a larger one would be infinite."""
_MAX_REASON_CHARS = 500
"""Reasons travel to the ledger and the log; an exception's text may hold a whole completion."""


@dataclass(frozen=True)
class Score:
    """The reward of one completion."""

    reward: float
    """Σ weight · score over the terms; finite as a float32."""
    correct: bool
    """The first term scored ≥ 1."""


@dataclass(frozen=True)
class RewardFailure:
    """A completion that could not be scored."""

    reason: str


class _TimeLimitError(BaseException):
    """Not an Exception, so that a reward function's own `except Exception` does not swallow it."""


_terms: list[tuple[str, RewardFunction, float]] = []


def start(terms: Sequence[tuple[str, float]]) -> None:
    """Resolves the (function name, weight) terms once, when the process starts."""
    _terms[:] = [(name, resolve(name), weight) for name, weight in terms]


def score_some(
    prompt: str, completions: Sequence[str], answer: str, time_limit_s: float
) -> list[Score | RewardFailure]:
    """Scores the first completion, and those that follow it while less than `time_limit_s` has passed.

    So it returns within 2 · `time_limit_s` (1 · for a single completion) unless code that ignores signals holds it up.
    """
    signal.signal(signal.SIGALRM, _on_alarm)  # anew each time: a reward function may have set its own
    started = time.monotonic()
    results: list[Score | RewardFailure] = []
    for completion in completions:
        if results and time.monotonic() - started >= time_limit_s:
            break
        results.append(_score_one(prompt, completion, answer, time_limit_s))
    return results


def _score_one(prompt: str, completion: str, answer: str, time_limit_s: float) -> Score | RewardFailure:
    try:
        signal.setitimer(signal.ITIMER_REAL, time_limit_s)
        try:
            return _score(prompt, completion, answer)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeLimitError:
        return RewardFailure(f"took longer than reward.time_limit_s = {time_limit_s:g} s")
    except BaseException as error:  # noqa: BLE001  a user's function may raise anything, SystemExit included
        reason = "".join(traceback.format_exception_only(error)).strip()
        return RewardFailure(reason[:_MAX_REASON_CHARS])


def _score(prompt: str, completion: str, answer: str) -> Score | RewardFailure:
    scores: list[float] = []
    for name, function, _ in _terms:
        value = function(prompt, completion, answer)
        if not isinstance(value, Real) or not math.isfinite(value):
            return RewardFailure(f"{name} returned {value!r}, not a finite number"[:_MAX_REASON_CHARS])
        scores.append(float(value))
    reward = sum(weight * score for (_, _, weight), score in zip(_terms, scores, strict=True))
    if not abs(reward) <= LARGEST_REWARD:
        return RewardFailure(f"the reward, {reward:g}, is beyond float32 (±{LARGEST_REWARD:.1e}); scale it down")
    return Score(reward=reward, correct=scores[0] >= 1)


def _on_alarm(signum: int, frame: object) -> NoReturn:
    raise _TimeLimitError
