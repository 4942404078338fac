"""The learner of a simulated run: the loop of `learn/worker.py` and its publish thread, with times for work.

The loop is a coroutine. It yields seconds to work for so long, and None to wait until something has changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial
from typing import Protocol

from asyncrl.ledger.ledger import Ledger
from asyncrl.simulate.clock import VirtualClock
from asyncrl.simulate.engine import SampledGroup
from asyncrl.simulate.fleet import Fleet
from asyncrl.simulate.records import StepRecord
from asyncrl.simulate.setting import Setting

RETRY_S = 0.25
"""A publish looks so often whether a generator has come back; as `learn/publisher.py`."""

Loop = Generator[float | None, None, None]


class Replay(Protocol):
    """What the learner asks of the rest of the simulated run."""

    ledger: Ledger
    fleet: Fleet

    @property
    def is_evaluated(self) -> bool: ...

    def take_batch(self, step: int) -> list[SampledGroup] | None: ...

    def observe(self, effective_sample_size: float) -> None: ...

    def published(self, version: int) -> None: ...

    def evaluate(self, version: int) -> None: ...


class SimulatedLearner:
    """All ranks together, and rank 0's publish thread."""

    def __init__(self, setting: Setting, clock: VirtualClock, replay: Replay) -> None:
        self._setting = setting
        self._timings = setting.timings
        self._clock = clock
        self._replay = replay
        self._loop = self._run()
        self._waits = False
        self.publishes = False
        """A version is on its way to the generators."""
        self.ended = False
        self.records: list[StepRecord] = []

    def start(self) -> None:
        self._go_on()

    def look(self) -> None:
        """Something has changed that the loop may be waiting for."""
        if self._waits:
            self._go_on()

    def _go_on(self) -> None:
        self._waits = False
        try:
            work_s = next(self._loop)
        except StopIteration:
            self.ended = True
            return
        if work_s is None:
            self._waits = True
        else:
            self._clock.after(work_s, self._go_on)

    def _run(self) -> Loop:
        if self._evaluates:
            yield from self._evaluate(0)
        for step in range(self._setting.num_steps):
            yield from self._step(step)
        yield from self._until(lambda: not self.publishes)
        if self._evaluates:
            yield from self._evaluate(self._setting.num_steps)

    def _step(self, step: int) -> Loop:
        start_s = self._clock.now_s
        while (batch := self._replay.take_batch(step)) is None:
            yield None
        queue_depth, eta = self._replay.ledger.num_queued, self._replay.ledger.admission.eta
        yield self._timings.deliver_s
        fetched_s = self._clock.now_s
        train_s = self._train_s(batch)
        yield train_s
        publish_wait_s = yield from self._publish_when_due(step + 1)
        save_every = self._setting.config.run.save_every
        if save_every and (step + 1) % save_every == 0:
            yield self._timings.save_s
        lags = _tokens_by_lag(batch, step)
        bound = self._setting.config.replay.max_staleness
        record = StepRecord(
            step=step,
            start_s=start_s,
            wait_s=fetched_s - start_s,
            train_s=train_s,
            publish_wait_s=publish_wait_s,
            end_s=self._clock.now_s,
            queue_depth=queue_depth,
            eta=eta,
            num_samples=len(batch) * self._setting.config.algorithm.group_size,
            tokens_by_lag=lags,
            num_masked_tokens=sum(count for lag, count in lags.items() if lag > bound),
            fleet=self._replay.fleet.totals(),
        )
        self.records.append(record)
        self._replay.observe(math.exp(-self._setting.workload.log_ess_per_version * (record.lag_mean + 1)))

    def _train_s(self, batch: list[SampledGroup]) -> float:
        """Each completion is trained with its prompt."""
        config = self._setting.config
        num_prompt_tokens = len(batch) * config.algorithm.group_size * self._setting.workload.prompt_tokens
        num_tokens = num_prompt_tokens + sum(group.num_tokens for group in batch)
        return self._timings.train_base_s + self._timings.train_per_token_s * num_tokens / config.learner.count

    # ── versions ──

    def _publish_when_due(self, version: int) -> Generator[float | None, None, float]:
        """Returns the seconds that were waited for a publish."""
        is_last = version == self._setting.num_steps
        if not is_last and version % self._setting.config.publish.every:
            return 0.0
        start_s = self._clock.now_s
        yield from self._until(lambda: not self.publishes)
        waited_s = self._clock.now_s - start_s
        yield self._timings.gather_s
        self._hand_over(version, evaluate=self._evaluates and version % self._eval_every == 0 and not is_last)
        if not self._timings.overlaps:
            handed_over_s = self._clock.now_s
            yield from self._until(lambda: not self.publishes)
            waited_s += self._clock.now_s - handed_over_s
        return waited_s

    def _hand_over(self, version: int, evaluate: bool) -> None:
        self.publishes = True
        transfer_s = self._timings.transfer_s if self._timings.overlaps else 0.0
        self._clock.after(transfer_s, partial(self._switch, version, evaluate))

    def _switch(self, version: int, evaluate: bool) -> None:
        if not self._replay.fleet.num_serving:
            self._clock.after(RETRY_S, partial(self._switch, version, evaluate))
            return
        stall_s = self._timings.stall_s if self._timings.overlaps else self._timings.transfer_s + self._timings.stall_s
        self._replay.fleet.switch(version, stall_s)
        self._clock.after(stall_s, partial(self._served, version, evaluate))

    def _served(self, version: int, evaluate: bool) -> None:
        self.publishes = False
        self._replay.published(version)
        if evaluate:
            self._replay.evaluate(version)
        self.look()

    def _evaluate(self, version: int) -> Loop:
        """Waits for it, so that it sees one policy alone."""
        self._replay.evaluate(version)
        yield from self._until(lambda: self._replay.is_evaluated)

    @property
    def _evaluates(self) -> bool:
        return self._eval_every > 0 and self._setting.workload.num_eval_prompts > 0

    @property
    def _eval_every(self) -> int:
        return self._setting.config.run.eval_every

    def _until(self, condition: Callable[[], bool]) -> Loop:
        while not condition():
            yield None


def _tokens_by_lag(batch: list[SampledGroup], step: int) -> dict[int, int]:
    lags: dict[int, int] = {}
    for group in batch:
        for version, num_tokens in group.tokens_by_version.items():
            lags[step - version] = lags.get(step - version, 0) + num_tokens
    return lags
