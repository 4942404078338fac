"""Processes that score completions, so that a reward function that fails or never returns costs one completion.

Two limits hold. Inside the process an alarm stops Python code that takes longer than the limit of one term of one
completion (worker.py). Around the process a hard limit kills what ignores the alarm; a group whose process was lost is
scored again, one completion and one term at a time, which finds the culprit. What a built-in function cannot finish is
a wrong answer; what a function of the user's own cannot finish is a failure.

Groups are scored in the order in which they come, few at once: a function that never returns takes its limit for every
completion, and were all groups scored in turns, the first would be reported only when all of them are through.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from asyncrl.config.reward_labels import reward_weights
from asyncrl.config.schema import RewardTerm
from asyncrl.rewards.functions import BUILT_IN, resolve
from asyncrl.rewards.judge import Judge, JudgeError
from asyncrl.rewards.judge_config import JUDGE, judge_config
from asyncrl.rewards.judge_store import JudgeStore
from asyncrl.rewards.sample import Question, Sample, sample_values
from asyncrl.rewards.worker import RewardFailure, Score, do_nothing, score_some, start
from asyncrl.types import beyond_float32

_GRACE_S = 1.0
"""What the hard limit allows beyond the alarm: for the alarm to act and the result to travel."""
_SPARE_GROUPS = 1
"""Groups at hand beyond one a process, so that none of them waits for this event loop."""


class RewardPool:
    """`num_workers` processes that score groups; safe to share between the tasks of one event loop."""

    def __init__(
        self, terms: Sequence[RewardTerm], num_workers: int, time_limit_s: float, judge_file: Path | None = None
    ) -> None:
        """Checks the terms; the processes start with the first group.

        Args:
            judge_file: where replies of a judge are kept; None = in memory.

        Raises:
            ConfigError: a term's function cannot be resolved.
        """
        for term in terms:
            resolve(term)
        self._weights = reward_weights(terms)
        """By label, in the order of the terms."""
        self._functions = [term for term in terms if term.function != JUDGE]
        judges = {place: judge_config(term.args) for place, term in enumerate(terms) if term.function == JUDGE}
        store = JudgeStore(judge_file) if judges else None
        self._judges = {place: Judge(config, store) for place, config in judges.items() if store is not None}
        """By their place among the terms."""
        self._num_workers = num_workers
        self._time_limit_s = time_limit_s
        self._pool = self._new_pool()
        self._turns = asyncio.Semaphore(num_workers + _SPARE_GROUPS)

    def start(self) -> None:
        """Starts the processes now, so that the first group does not wait for them."""
        for _ in range(self._num_workers):
            self._pool.schedule(do_nothing)

    async def score(
        self,
        prompt: str,
        completions: Sequence[str],
        answer: str,
        columns: str = "",
        tokens: Sequence[Sequence[int]] | None = None,
    ) -> list[Score | RewardFailure]:
        """One result per completion, in order.

        A function that raises, returns no finite number, ends its process or never returns fails that completion alone.

        Args:
            columns: further values of the row by name, a JSON object (`Question.columns`).
            tokens: of each completion.
        """
        question = Question(prompt, answer, columns)
        samples = [Sample(text, ids) for text, ids in zip(completions, tokens or [()] * len(completions), strict=True)]
        by_functions, by_judges = await asyncio.gather(
            self._score_by_functions(question, samples),
            asyncio.gather(*[self._score_by_judges(question, sample) for sample in samples]),
        )
        return [self._sum(*both) for both in zip(by_functions, by_judges, strict=True)]

    def close(self) -> None:
        """Ends the processes at once; a score still awaited is cancelled."""
        self._pool.stop()
        self._pool.join()

    def _sum(
        self, by_functions: list[float] | RewardFailure, by_judges: dict[int, float] | RewardFailure
    ) -> Score | RewardFailure:
        if isinstance(by_functions, RewardFailure):
            return by_functions
        if isinstance(by_judges, RewardFailure):
            return by_judges
        of_functions = iter(by_functions)
        scores = [by_judges[place] if place in by_judges else next(of_functions) for place in range(len(self._weights))]
        reward = sum(weight * score for weight, score in zip(self._weights.values(), scores, strict=True))
        if (problem := beyond_float32(reward)) is not None:
            return RewardFailure(problem)
        terms = dict(zip(self._weights, scores, strict=True)) if len(scores) > 1 else {}
        return Score(reward=reward, correct=scores[0] >= 1, terms=terms)

    async def _score_by_judges(self, question: Question, sample: Sample) -> dict[int, float] | RewardFailure:
        if not self._judges:
            return {}
        values = sample_values(question, sample)
        try:
            return {place: await judge.score(values) for place, judge in self._judges.items()}
        except JudgeError as error:
            return RewardFailure(f"judge: {error}")

    async def _score_by_functions(
        self, question: Question, samples: Sequence[Sample]
    ) -> list[list[float] | RewardFailure]:
        if not self._functions:
            return [[] for _ in samples]
        every_term = range(len(self._functions))
        results: list[list[float] | RewardFailure] = []
        async with self._turns:
            while len(results) < len(samples):
                rest = samples[len(results) :]
                scored = await self._run(question, rest, every_term)
                if isinstance(scored, RewardFailure):
                    scored = [await self._score_by_each_term(question, sample) for sample in rest]
                results += scored
        return results

    async def _score_by_each_term(self, question: Question, sample: Sample) -> list[float] | RewardFailure:
        scores: list[float] = []
        for place, term in enumerate(self._functions):
            lost_or_scored = await self._run(question, [sample], [place])
            if isinstance(lost_or_scored, RewardFailure):
                result: list[float] | RewardFailure = [0.0] if term.function in BUILT_IN else lost_or_scored
            else:
                (result,) = lost_or_scored
            if isinstance(result, RewardFailure):
                return result
            scores += result
        return scores

    async def _run(
        self, question: Question, samples: Sequence[Sample], terms: Sequence[int]
    ) -> list[list[float] | RewardFailure] | RewardFailure:
        """Results of at least the first of the samples, or the failure that ended the process."""
        pool = self._working_pool()
        num_limits = len(terms) + (len(samples) > 1)
        arguments = (question, list(samples), list(terms), self._time_limit_s)
        try:
            scored = pool.schedule(score_some, arguments, timeout=num_limits * self._time_limit_s + _GRACE_S)
            return await asyncio.wrap_future(scored)
        except TimeoutError:
            return RewardFailure(
                f"ignored reward.time_limit_s = {self._time_limit_s:g} s; its process was killed (a long import "
                "belongs at the top of the function's file, where no limit holds)"
            )
        except ProcessExpired as error:
            return RewardFailure(f"ended its process with exit code {error.exitcode}")
        except BrokenProcessPool as error:
            return RewardFailure(f"ended its process: {error}")

    def _working_pool(self) -> ProcessPool:
        """The pool; a new one when a process that ended between two tasks broke it."""
        if not self._pool.active:
            self.close()
            self._pool = self._new_pool()
        return self._pool

    def _new_pool(self) -> ProcessPool:
        # spawn: the parent has threads and, in a generator, vLLM; a fork would inherit their locks.
        context = multiprocessing.get_context("spawn")
        return ProcessPool(self._num_workers, initializer=start, initargs=(self._functions,), context=context)
