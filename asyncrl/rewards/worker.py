"""What runs inside a reward process: scores a list of completions, each term under a time limit of its own.

Imports only the reward functions, so that a process starts fast and small.
"""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import FrameType
from typing import Any

from asyncrl.config.schema import RewardTerm
from asyncrl.rewards.functions import BUILT_IN, resolve
from asyncrl.rewards.math_answer import warm_up
from asyncrl.rewards.reward import Reward
from asyncrl.rewards.sample import Question, Sample, sample_values

_MAX_REASON_CHARS = 500
"""Reasons travel to the ledger and the log; an exception's text may hold a whole completion."""
_IMPORT_POLL_S = 0.05


@dataclass(frozen=True)
class Score:
    """The reward of one completion."""

    reward: float
    """Σ weight · score over the terms; finite as a float32."""
    correct: bool
    """The first term scored ≥ 1."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """The unweighted score of each term by its label, where there are several."""


@dataclass(frozen=True)
class RewardFailure:
    """A completion that could not be scored."""

    reason: str


class _TimeLimitError(BaseException):
    """Not an Exception, so that a reward function's own `except Exception` does not swallow it."""


_terms: list[Reward] = []


def start(terms: Sequence[RewardTerm]) -> None:
    """Resolves the terms once, when the process starts."""
    _terms[:] = [resolve(term) for term in terms]
    if any(term.function == "math" for term in terms):
        warm_up()


def do_nothing() -> None:
    """The process is up."""


def score_some(
    question: Question, samples: Sequence[Sample], terms: Sequence[int], time_limit_s: float
) -> list[list[float] | RewardFailure]:
    """Scores by these terms the first sample, and those that follow it while less than `time_limit_s` has passed.

    So it returns within (1 + terms) · `time_limit_s` unless code that ignores signals holds it up.

    Returns:
        For each sample that was scored its score by each of the terms, unweighted.
    """
    signal.signal(signal.SIGALRM, _on_alarm)  # anew each time: a reward function may have set its own
    started = time.monotonic()
    results: list[list[float] | RewardFailure] = []
    for sample in samples:
        if results and time.monotonic() - started >= time_limit_s:
            break
        # Anew for each: a function may change what it is given.
        results.append(_score_one([_terms[term] for term in terms], sample_values(question, sample), time_limit_s))
    return results


def _score_one(terms: Sequence[Reward], values: Mapping[str, Any], time_limit_s: float) -> list[float] | RewardFailure:
    scores: list[float] = []
    for term in terms:
        score = _call(term, values, time_limit_s)
        if isinstance(score, RewardFailure):
            return score
        scores.append(score)
    return scores


def _call(term: Reward, values: Mapping[str, Any], time_limit_s: float) -> float | RewardFailure:
    try:
        signal.setitimer(signal.ITIMER_REAL, time_limit_s)
        try:
            value = term(values)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeLimitError:
        if term.name in BUILT_IN:
            return 0.0  # an answer that mathematics cannot finish is wrong; what a model writes must not end a run
        return RewardFailure(f"{term.name} took longer than reward.time_limit_s = {time_limit_s:g} s")
    except BaseException as error:  # noqa: BLE001  a user's function may raise anything, SystemExit included
        reason = "".join(traceback.format_exception_only(error)).strip()
        return RewardFailure(reason[:_MAX_REASON_CHARS])
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # numpy's and torch's scalars
    if not isinstance(value, Real) or not math.isfinite(value):
        return RewardFailure(f"{term.name} returned {value!r}, not a finite number"[:_MAX_REASON_CHARS])
    return float(value)


def _on_alarm(signum: int, frame: FrameType | None) -> None:
    """Cuts the function off, but not in an import, which would leave the module half imported in this process for good.

    An import that takes longer than the pool's hard limit ends with its process.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.setitimer(signal.ITIMER_REAL, _IMPORT_POLL_S)
            return
        frame = frame.f_back
    raise _TimeLimitError
