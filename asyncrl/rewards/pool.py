"""Processes that score completions, so that a reward function that fails or never returns costs one completion.

Two limits hold. Inside the process an alarm stops Python code that takes longer than the limit of one completion
(worker.py). Around the process a hard limit kills what ignores the alarm; a group whose process was lost is scored
again, one completion at a time, which finds the culprit.

Groups are scored in the order in which they come, few at once: a function that never returns takes its limit for every
completion, and were all groups scored in turns, the first would be reported only when all of them are through.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from pebble import ProcessExpired, ProcessPool

from asyncrl.config.schema import RewardTerm
from asyncrl.rewards.functions import resolve
from asyncrl.rewards.worker import RewardFailure, Score, score_some, start

_GRACE_S = 1.0
"""What the hard limit allows beyond the alarm: for the alarm to act and the result to travel."""
_SPARE_GROUPS = 1
"""Groups at hand beyond one a process, so that none of them waits for this event loop."""


class RewardPool:
    """`num_workers` processes that score groups; safe to share between the tasks of one event loop."""

    def __init__(self, terms: Sequence[RewardTerm], num_workers: int, time_limit_s: float) -> None:
        """Checks the terms; the processes start with the first group.

        Raises:
            ConfigError: a term's function cannot be resolved.
        """
        for term in terms:
            resolve(term.function)
        self._terms = [(term.function, term.weight) for term in terms]
        self._num_workers = num_workers
        self._time_limit_s = time_limit_s
        self._pool = self._new_pool()
        self._turns = asyncio.Semaphore(num_workers + _SPARE_GROUPS)

    async def score(self, prompt: str, completions: Sequence[str], answer: str) -> list[Score | RewardFailure]:
        """One result per completion, in order.

        A function that raises, returns no finite number, ends its process or never returns fails that completion alone.
        """
        results: list[Score | RewardFailure] = []
        async with self._turns:
            while len(results) < len(completions):
                rest = completions[len(results) :]
                scored = await self._run(prompt, rest, answer)
                if isinstance(scored, RewardFailure):
                    scored = [await self._score_alone(prompt, completion, answer) for completion in rest]
                results += scored
        return results

    def close(self) -> None:
        """Ends the processes at once; a score still awaited is cancelled."""
        self._pool.stop()
        self._pool.join()

    async def _score_alone(self, prompt: str, completion: str, answer: str) -> Score | RewardFailure:
        scored = await self._run(prompt, [completion], answer)
        return scored if isinstance(scored, RewardFailure) else scored[0]

    async def _run(
        self, prompt: str, completions: Sequence[str], answer: str
    ) -> list[Score | RewardFailure] | RewardFailure:
        """Results of at least the first of the completions, or the failure that ended the process."""
        pool = self._working_pool()
        hard_limit_s = min(len(completions), 2) * self._time_limit_s + _GRACE_S
        arguments = (prompt, list(completions), answer, self._time_limit_s)
        try:
            return await asyncio.wrap_future(pool.schedule(score_some, arguments, timeout=hard_limit_s))
        except TimeoutError:
            return RewardFailure(f"ignored reward.time_limit_s = {self._time_limit_s:g} s; its process was killed")
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
        return ProcessPool(self._num_workers, initializer=start, initargs=(self._terms,), context=context)
