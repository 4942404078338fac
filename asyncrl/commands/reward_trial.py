"""Rewards that cannot work, and answers that they cannot read, found before anything heavy starts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from asyncrl.config.schema import RewardConfig, RewardTerm
from asyncrl.data.rows import Row
from asyncrl.errors import ConfigError, DataError
from asyncrl.rewards.final_answer import final_number
from asyncrl.rewards.functions import BUILT_IN
from asyncrl.rewards.judge_config import JUDGE
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.worker import RewardFailure, Score

_MAX_ANSWER_CHARS = 80
_MAX_PROCESSES = 8
_LEAST_LIMIT_S = 30.0
"""For an answer beside itself: a busy machine must not have a good row refused."""


def try_functions(config: RewardConfig, row: Row) -> None:
    """Calls each function of the user's own, and a judge, once as a run would: the row's answer is the completion.

    Raises:
        ConfigError: it raised, took too long, or returned no finite number.
    """
    own = [term for term in config.terms if term.function not in BUILT_IN]
    for term in own:
        (result,) = _score([term], [row], num_workers=1, time_limit_s=config.time_limit_s)
        if isinstance(result, RewardFailure):
            way_out = (
                "Start it, or mend its args"
                if term.function == JUDGE
                else "A function scores any text that a model may write, and returns one number"
            )
            raise ConfigError(
                f"reward.terms: {term.function!r} failed when it was tried on the first row, its answer as the "
                f"completion ({_shorten(row.answer)}): {result.reason}. {way_out}"
            )


def check_answers(config: RewardConfig, rows: Mapping[str, Sequence[Row]]) -> None:
    """Scores each answer against itself by the built-in functions that compare answers.

    Args:
        rows: by their key of the configuration.

    Raises:
        DataError: rows for which no completion could ever be correct; names the first.
    """
    names = {term.function for term in config.terms}
    with_number = {row.answer for part in rows.values() for row in part if final_number(row.answer) is not None}
    for key, part in rows.items():
        other = [row for row in part if row.answer not in with_number]
        numeric = sorted(names & {"numeric", "shaped_numeric"})
        if numeric and other:
            _refuse(key, other, numeric[0], "states no number")
        if "math" in names and other:
            unreadable = _unequal_to_themselves(other, config.time_limit_s)
            if unreadable:
                _refuse(key, unreadable, "math", "cannot be read, or is not equal to itself, for math-verify")


def _unequal_to_themselves(rows: Sequence[Row], time_limit_s: float) -> list[Row]:
    num_workers = min(len(os.sched_getaffinity(0)), _MAX_PROCESSES, len(rows))
    results = _score([RewardTerm("math")], rows, num_workers, max(time_limit_s, _LEAST_LIMIT_S))
    return [
        row
        for row, result in zip(rows, results, strict=True)
        if isinstance(result, RewardFailure) or not result.correct
    ]


def _score(
    terms: Sequence[RewardTerm], rows: Sequence[Row], num_workers: int, time_limit_s: float
) -> list[Score | RewardFailure]:
    """Of each row's answer as the completion, in processes as those of a run."""
    pool = RewardPool(terms, num_workers, time_limit_s)

    async def score_all() -> list[list[Score | RewardFailure]]:
        scores = []
        for row in rows:
            tokens = list(row.answer.encode()) or [0]  # there is no tokenizer yet
            scores.append(pool.score(row.prompt, [row.answer], row.answer, row.columns, [tokens]))
        return await asyncio.gather(*scores)

    try:
        return [result for (result,) in asyncio.run(score_all())]
    finally:
        pool.close()


def _refuse(key: str, rows: Sequence[Row], function: str, reason: str) -> None:
    more = f", and {len(rows) - 1} more rows" if len(rows) > 1 else ""
    raise DataError(
        f"{key}: {rows[0].place}: the answer {_shorten(rows[0].answer)} {reason}, so {function!r} of reward.terms "
        f"could never score 1{more}; mend or drop the rows, set data.answer_column, or use another reward"
    )


def _shorten(answer: str) -> str:
    return repr(answer if len(answer) <= _MAX_ANSWER_CHARS else f"{answer[:_MAX_ANSWER_CHARS]}…")
