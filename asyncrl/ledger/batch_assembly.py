"""The queue of finished groups, and the batches made from it. Pure.

A batch is kept unchanged until a checkpoint contains it. A learner that restarts from a checkpoint gets the same
batches again. So it retraces its steps, and a version number means the same policy as before.
"""

from __future__ import annotations

import heapq

from asyncrl.errors import RunError
from asyncrl.ledger.records import LedgerSnapshot, PromptRecord, Stragglers


class BatchAssembly:
    """Which prompts have ended, which are queued, and which are in which batch.

    Args:
        batch_size: B.
        stragglers: wait and window = batches in admission order; else in order of completion.
        snapshot: where to continue.
        window: how many prompts may be trained before one that was drawn before them.
    """

    def __init__(self, batch_size: int, stragglers: Stragglers, snapshot: LedgerSnapshot, window: int = 0) -> None:
        self._batch_size = batch_size
        self._in_order = stragglers in ("wait", "window")
        self._window = window
        self.next_step = snapshot.next_step
        """The first step whose batch has not been taken."""
        self.low = snapshot.next_index
        """Every index below has ended."""
        self._ended_above = set(snapshot.ended)
        self._placed_above = set(snapshot.placed)
        """Those of them that are in a batch."""
        self.queued: dict[int, int] = {}
        """Index → the version that sampled its oldest token, in order of completion."""
        self._num_queued_ever = 0
        self._taken: dict[int, list[int]] = {}  # step → the indices of its batch, until a checkpoint has it
        for record in sorted(snapshot.records, key=lambda record: (record.place or 0, record.index)):
            if record.state == "queued":
                assert record.place is not None
                assert record.first_version is not None
                self.queued[record.index] = record.first_version
                self._num_queued_ever = record.place + 1
            elif record.state == "batched":
                assert record.step is not None
                self._taken.setdefault(record.step, []).append(record.index)

    @property
    def num_taken(self) -> int:
        """Prompts in batches that have been taken."""
        return self.next_step * self._batch_size

    def put(self, index: int, first_version: int, solved: float | None) -> PromptRecord:
        """Queues a group that is to be trained."""
        self.queued[index] = first_version
        self._num_queued_ever += 1
        place = self._num_queued_ever - 1
        return PromptRecord(index, "queued", place=place, first_version=first_version, solved=solved)

    def drop_stale(self, max_staleness: int) -> list[int]:
        """Removes from the queue the prompts whose oldest token is over the bound for the next batch."""
        stale = [index for index, version in self.queued.items() if self.next_step - version > max_staleness]
        for index in stale:
            del self.queued[index]
        return stale

    def mark_ended(self, index: int) -> None:
        """The prompt is in a batch, filtered, quarantined or skipped."""
        self._ended_above.add(index)
        while self.low in self._ended_above:
            self._ended_above.remove(self.low)
            self._placed_above.discard(self.low)
            self.low += 1

    def kept(self, step: int) -> list[int] | None:
        """The batch of a step that was taken before. None: the step is the next one, and its batch has not been taken.

        Raises:
            RunError: it is not kept any more, or steps before it have not been taken.
        """
        if step in self._taken or step == self.next_step:
            return self._taken.get(step)
        kept = f"{min(self._taken)} to {self.next_step - 1}" if self._taken else "none"
        raise RunError(f"the batch of step {step} is asked for; kept are {kept}, and the next is {self.next_step}")

    def assemble(self) -> list[PromptRecord] | None:
        """The next batch: B finished groups by admission index, or None until they are there."""
        ready = self._ready()
        if len(ready) < self._batch_size:
            return None
        step = self.next_step
        records = [PromptRecord(index, "batched", step=step, first_version=self.queued.pop(index)) for index in ready]
        self._placed_above |= {index for index in ready if index >= self.low}
        for index in ready:
            self.mark_ended(index)
        self._taken[step] = ready
        self.next_step += 1
        return records

    def checkpointed(self, step: int) -> list[PromptRecord]:
        """The checkpoint after `step` steps is whole, so the batches of these steps need not be kept."""
        in_it = [taken for taken in self._taken if taken < step]
        return [PromptRecord(index, "trained", step=taken) for taken in in_it for index in self._taken.pop(taken)]

    def _ready(self) -> list[int]:
        if not self._in_order:
            first = [index for index, _ in zip(self.queued, range(self._batch_size), strict=False)]
            return sorted(first)
        ready: list[int] = []
        index = self.low
        while len(ready) < self._batch_size and (index in self.queued or index in self._ended_above):
            if index in self.queued:
                ready.append(index)
            index += 1
        missing = self._batch_size - len(ready)
        if missing == 0 or self._window == 0:
            return ready
        # `index` is the oldest prompt that has not come back, so no other is overtaken by as many.
        num_before = sum(placed > index for placed in self._placed_above)
        may_overtake = heapq.nsmallest(missing, (queued for queued in self.queued if queued > index))
        return [*ready, *may_overtake[: max(0, self._window - num_before)]]
