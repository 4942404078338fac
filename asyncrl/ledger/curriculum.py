"""The curriculum: which draws are skipped, because their prompt has nothing to teach at present. Pure.

A prompt is skipped whose last `num_visits` groups were all solved whole, or not at all. After as many skips in a row it
is visited again, as the policy has moved on. A visit counts from when the batch of its step was taken. So at η = 0 a
decision does not depend on who answers first. Each skip is kept by the ledger, so no later process decides it anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from asyncrl.ledger.records import PromptRecord

SOLVED_WHOLE, SOLVED_NOT = 1.0, 0.0


@dataclass
class _History:
    visits: deque[float]
    num_skips: int = 0
    """In a row, up to the latest draw."""


class Curriculum:
    """What is known of each prompt.

    Args:
        num_visits: ≥ 1.
        position: admission index → which prompt it draws.
        records: of an earlier process: every prompt that was drawn, by index.
        next_step: of the same process.
    """

    def __init__(
        self, num_visits: int, position: Callable[[int], int], records: Iterable[PromptRecord] = (), next_step: int = 0
    ) -> None:
        self._num_visits = num_visits
        self._position = position
        self._histories: dict[int, _History] = {}
        self._waiting: dict[int, float] = {}
        """Index → share solved, of the visits that do not count yet."""
        self._filtered: set[int] = set()
        """Of these, what was filtered since the last batch was taken."""
        known = list(records)
        for record in known:
            history = self._history(record.index)
            history.num_skips = history.num_skips + 1 if record.state == "skipped" else 0
        for record in sorted(known, key=lambda record: (record.step or 0, record.index)):
            if record.solved is None:
                continue
            if record.step is not None and record.step < next_step:
                self._history(record.index).visits.append(record.solved)
            else:
                self.visited(record.index, record.solved, is_filtered=record.state == "filtered")

    def skips(self, index: int) -> bool:
        """Whether this draw is to be skipped."""
        history = self._history(index)
        is_known = len(history.visits) == self._num_visits
        has_nothing = is_known and len(set(history.visits)) == 1 and history.visits[0] in (SOLVED_WHOLE, SOLVED_NOT)
        return has_nothing and history.num_skips < self._num_visits

    def skipped(self, index: int) -> None:
        """The draw was skipped."""
        self._history(index).num_skips += 1

    def drawn(self, index: int) -> None:
        """The draw was not skipped."""
        self._history(index).num_skips = 0

    def visited(self, index: int, solved: float, is_filtered: bool) -> None:
        """A group came back; `solved` is the share of its scored completions that are correct."""
        self._waiting[index] = solved
        if is_filtered:
            self._filtered.add(index)

    def step_taken(self, batch: Iterable[int]) -> None:
        """A batch of these indices was taken."""
        for index in sorted({*batch, *self._filtered} & self._waiting.keys()):
            self._history(index).visits.append(self._waiting.pop(index))
        self._filtered.clear()

    def _history(self, index: int) -> _History:
        position = self._position(index)
        if position not in self._histories:
            self._histories[position] = _History(deque(maxlen=self._num_visits))
        return self._histories[position]
