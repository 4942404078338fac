"""The ledger: every prompt's life, and who may draw the next one. Pure: no clock, no sockets, no threads of its own.

    drawn ──▶ leased ──▶ queued ──▶ trained       (each prompt ends exactly once: trained, filtered or quarantined)
      ▲          │  └──▶ filtered: its group came back without a signal, and another prompt takes its place
      └──────────┤ failed, expired or released
                 └──▶ quarantined, after `max_attempts` failures; deaths of its generator among them

A prompt's name is its admission index: 0, 1, 2, … in the order in which prompts were drawn.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

from asyncrl.errors import RunError
from asyncrl.replay.staleness import admission_limit

Failure = Literal["retried", "quarantined"]
Completion = Literal["queued", "filtered"]


@dataclass(frozen=True)
class LeaseRecord:
    """One prompt at one generator."""

    lease_id: int
    index: int
    generator: str
    deadline_s: float
    """On the caller's clock."""


@dataclass(frozen=True)
class Taken:
    """A batch's admission indices and what has ended once it is trained."""

    indices: list[int]
    next_index: int
    ended: list[int]


class Ledger:
    """Draws, leases, queues and batches prompts under the staleness bound.

    Args:
        batch_size: B.
        max_staleness: η; `eta` may be set lower later.
        num_steps: the run's length; num_steps·B prompts are drawn, and replacements of those filtered and quarantined.
        in_order: batches in admission order (stragglers=wait), else in order of completion.
        lease_timeout_s: a lease not answered by then is taken back.
        max_attempts: failures (or expired leases) after which a prompt is quarantined.
        max_refill_prompts: of the prompts drawn after one batch was taken, the first so many are filtered when they
            come back without a signal. Counted by admission index, not by time, so that at η = 0 it does not depend
            on who answers first. 0 = none is filtered.
        version: the version to start from; `version`·B prompts have been trained.
        next_index, ended: what a resumed run has behind it (see types.Batch).
    """

    def __init__(
        self,
        *,
        batch_size: int,
        max_staleness: int,
        num_steps: int,
        in_order: bool,
        lease_timeout_s: float,
        max_attempts: int,
        max_refill_prompts: int = 0,
        version: int = 0,
        next_index: int = 0,
        ended: list[int] | None = None,
    ) -> None:
        self._batch_size = batch_size
        self.eta = max_staleness
        """η of the prompts drawn from now on. Lowered, it closes admission until the version has caught up."""
        self._num_steps = num_steps
        self._in_order = in_order
        self._lease_timeout_s = lease_timeout_s
        self._max_attempts = max_attempts
        self._max_refill_prompts = max_refill_prompts
        self._refill_end = next_index + max_refill_prompts
        self.served_version: int | None = None  # admission is closed until the first publish
        self._num_trained = version * batch_size
        self._next_lease_id = 0
        self._ended_above = set(ended or ())  # ended indices that are not yet below the low-water mark
        self._low = next_index  # every index below has ended
        self._drawn_to = next_index  # every index below has been drawn
        self._leases: dict[int, LeaseRecord] = {}
        self._lease_of: dict[int, int] = {}  # index → lease id
        self._retries: list[int] = []  # heap of indices to be leased again
        self._attempts: dict[int, int] = {}
        self._queued: dict[int, None] = {}  # index, in order of completion
        self.quarantined: dict[int, str] = {}
        self.num_filtered = 0

    # ── drawing and leasing ──

    def lease(self, generator: str, now_s: float) -> LeaseRecord | None:
        """The next prompt for this generator, or None while none may be drawn."""
        index = self._next_index()
        if index is None:
            return None
        lease = LeaseRecord(self._next_lease_id, index, generator, now_s + self._lease_timeout_s)
        self._next_lease_id += 1
        self._leases[lease.lease_id] = lease
        self._lease_of[index] = lease.lease_id
        return lease

    def _next_index(self) -> int | None:
        if self._retries:
            return heapq.heappop(self._retries)
        while self._drawn_to < self._low or self._drawn_to in self._ended_above:  # a resumed run has such gaps
            self._drawn_to += 1
        if not self._may_draw():
            return None
        self._drawn_to += 1
        return self._drawn_to - 1

    def _may_draw(self) -> bool:
        if self.served_version is None:
            return False
        limit = admission_limit(self.served_version, self.eta, self._batch_size)
        num_open = len(self._lease_of) + len(self._queued) + len(self._retries)
        return self._num_trained + num_open < min(limit, self._num_steps * self._batch_size)

    # ── how a lease ends ──

    def complete(self, lease_id: int, has_signal: bool = True) -> Completion | None:
        """A group came back. None: its prompt has ended or was answered under another lease.

        A late answer to an expired lease counts while its prompt is still open.
        """
        lease = self._leases.pop(lease_id, None)
        if lease is None or not self._is_open(lease.index):
            return None
        self._close(lease.index)
        if not has_signal and self._max_refill_prompts and lease.index < self._refill_end:
            self.num_filtered += 1
            self._end(lease.index)
            return "filtered"
        self._queued[lease.index] = None
        return "queued"

    def fail(self, lease_id: int, reason: str) -> Failure | None:
        """A lease came back without a usable group. None: it had expired, which counted as its failure."""
        lease = self._leases.pop(lease_id, None)
        return self._failed(lease, reason) if lease is not None and self._holds(lease) else None

    def expire(self, now_s: float) -> list[tuple[LeaseRecord, Failure]]:
        """Takes back the leases whose deadline has passed; the prompts go to the next generator that asks."""
        late = [lease for lease in self._leases.values() if lease.deadline_s <= now_s and self._holds(lease)]
        return [(lease, self._failed(lease, f"{lease.generator} did not answer in time")) for lease in late]

    def release(self, generator: str) -> list[LeaseRecord]:
        """Takes back every lease of a generator that has gone; it will answer none of them."""
        gone = [lease for lease in self._leases.values() if lease.generator == generator]
        held = [lease for lease in gone if self._holds(lease)]
        for lease in held:
            self._take_back(lease)
        for lease in gone:
            del self._leases[lease.lease_id]
        return held

    def lose(self, generator: str, reason: str) -> list[tuple[LeaseRecord, Failure]]:
        """As `release`, for a generator that died: each prompt that it held may be what killed it, so it counts."""
        gone = [lease for lease in self._leases.values() if lease.generator == generator]
        lost = [(lease, self._failed(lease, reason)) for lease in gone if self._holds(lease)]
        for lease in gone:
            del self._leases[lease.lease_id]
        return lost

    def index_of(self, lease_id: int) -> int | None:
        """The admission index of an unanswered lease."""
        lease = self._leases.get(lease_id)
        return None if lease is None else lease.index

    def _holds(self, lease: LeaseRecord) -> bool:
        return self._lease_of.get(lease.index) == lease.lease_id

    def _failed(self, lease: LeaseRecord, reason: str) -> Failure:
        num_attempts = self._attempts.get(lease.index, 0) + 1
        if num_attempts < self._max_attempts:
            self._attempts[lease.index] = num_attempts
            self._take_back(lease)
            return "retried"
        del self._lease_of[lease.index]
        self.quarantined[lease.index] = reason
        self._end(lease.index)
        return "quarantined"

    def _take_back(self, lease: LeaseRecord) -> None:
        del self._lease_of[lease.index]
        heapq.heappush(self._retries, lease.index)

    def _is_open(self, index: int) -> bool:
        return index in self._lease_of or index in self._retries

    def _close(self, index: int) -> None:
        if index in self._retries:
            self._retries.remove(index)
            heapq.heapify(self._retries)
        else:
            del self._lease_of[index]

    # ── batches and versions ──

    def take_batch(self) -> Taken | None:
        """B finished groups, oldest first, or None until they are there. They count as trained from here on."""
        ready = self._ready()
        if len(ready) < self._batch_size:
            return None
        for index in ready:
            del self._queued[index]
            self._end(index)
        self._num_trained += self._batch_size
        self._refill_end = self._drawn_to + self._max_refill_prompts
        return Taken(ready, self._low, sorted(self._ended_above))

    def _ready(self) -> list[int]:
        if not self._in_order:
            first = [index for index, _ in zip(self._queued, range(self._batch_size), strict=False)]
            return sorted(first)
        ready: list[int] = []
        index = self._low
        while len(ready) < self._batch_size and (index in self._queued or index in self._ended_above):
            if index in self._queued:
                ready.append(index)
            index += 1
        return ready

    def published(self, version: int) -> None:
        """Every generator serves `version` whole.

        Raises:
            RunError: versions went backwards.
        """
        if self.served_version is not None and version < self.served_version:
            raise RunError(f"published version {version} after version {self.served_version}")
        self.served_version = version

    def _end(self, index: int) -> None:
        self._attempts.pop(index, None)
        self._ended_above.add(index)
        while self._low in self._ended_above:
            self._ended_above.remove(self._low)
            self._low += 1

    # ── figures ──

    @property
    def next_step(self) -> int:
        """The step whose batch is taken next."""
        return self._num_trained // self._batch_size

    @property
    def num_queued(self) -> int:
        return len(self._queued)

    @property
    def num_leased(self) -> int:
        return len(self._lease_of)

    def missing_for_batch(self) -> list[int]:
        """Those of the B oldest prompts in play that have not come back: for messages."""
        oldest = heapq.nsmallest(self._batch_size, [*self._lease_of, *self._retries, *self._queued])
        return [index for index in oldest if index not in self._queued]

    def holder_of(self, index: int) -> str | None:
        """The generator that holds this prompt's lease."""
        lease_id = self._lease_of.get(index)
        return None if lease_id is None else self._leases[lease_id].generator
