"""Which generator holds which prompt, which prompts wait to be leased again, and how often each has failed. Pure.

A lease that expired keeps its record: its late answer still counts while the prompt is open.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

from asyncrl.ledger.records import LeaseRecord, PromptRecord


class LeaseTable:
    """The open prompts: each is either held under one lease or in line to be leased again.

    Args:
        lease_timeout_s: from a grant to its deadline.
        next_lease_id: of the next grant.
    """

    def __init__(self, lease_timeout_s: float, next_lease_id: int) -> None:
        self._lease_timeout_s = lease_timeout_s
        self.next_lease_id = next_lease_id
        self._unanswered: dict[int, LeaseRecord] = {}
        self._lease_of: dict[int, int] = {}  # index → id of the lease that holds it
        self._in_line: list[int] = []  # heap of indices
        self._num_failures: dict[int, int] = {}

    def restore(self, record: PromptRecord, now_s: float) -> None:
        """Restores a prompt from an earlier process. Its lease starts over."""
        if record.state not in ("leased", "waiting"):
            return
        if record.num_failures:
            self._num_failures[record.index] = record.num_failures
        if record.state == "waiting":
            self.line_up(record.index)
            return
        assert record.lease_id is not None
        assert record.generator is not None
        self._hold(LeaseRecord(record.lease_id, record.index, record.generator, now_s + self._lease_timeout_s))

    # ── grants ──

    def grant(self, index: int, generator: str, now_s: float) -> LeaseRecord:
        lease = LeaseRecord(self.next_lease_id, index, generator, now_s + self._lease_timeout_s)
        self.next_lease_id += 1
        self._hold(lease)
        return lease

    def _hold(self, lease: LeaseRecord) -> None:
        self._unanswered[lease.lease_id] = lease
        self._lease_of[lease.index] = lease.lease_id

    def line_up(self, index: int) -> None:
        """Puts the prompt in line to be leased again."""
        heapq.heappush(self._in_line, index)

    def next_in_line(self) -> int | None:
        """The oldest prompt that waits, or None; it leaves the line."""
        return heapq.heappop(self._in_line) if self._in_line else None

    # ── answers ──

    def answer(self, lease_id: int) -> LeaseRecord | None:
        """Ends a lease. None: there is no such lease that has not been answered."""
        return self._unanswered.pop(lease_id, None)

    def holds(self, lease: LeaseRecord) -> bool:
        """Whether it still holds its prompt: it has not expired, and no other lease has taken its place."""
        return self._lease_of.get(lease.index) == lease.lease_id

    def is_open(self, index: int) -> bool:
        return index in self._lease_of or index in self._in_line

    def close(self, index: int) -> None:
        """Takes the prompt out of the table, with its failures: it is neither held nor in line any more."""
        self._num_failures.pop(index, None)
        if index in self._in_line:
            self._in_line.remove(index)
            heapq.heapify(self._in_line)
        else:
            del self._lease_of[index]

    def take_back(self, lease: LeaseRecord) -> None:
        """The prompt goes back in line."""
        del self._lease_of[lease.index]
        self.line_up(lease.index)

    def forget(self, leases: Iterable[LeaseRecord]) -> None:
        """Drops leases that will not be answered."""
        for lease in leases:
            del self._unanswered[lease.lease_id]

    # ── failures ──

    def num_failures(self, index: int) -> int:
        return self._num_failures.get(index, 0)

    def count_failure(self, index: int) -> int:
        """Adds a failure. Returns how many the prompt has."""
        self._num_failures[index] = self.num_failures(index) + 1
        return self._num_failures[index]

    # ── who holds what ──

    @property
    def num_open(self) -> int:
        return len(self._lease_of) + len(self._in_line)

    @property
    def num_held(self) -> int:
        return len(self._lease_of)

    @property
    def open_indices(self) -> list[int]:
        return [*self._lease_of, *self._in_line]

    def late(self, now_s: float) -> list[LeaseRecord]:
        """The leases whose deadline has passed and that still hold their prompt."""
        return [lease for lease in self._unanswered.values() if lease.deadline_s <= now_s and self.holds(lease)]

    def unanswered(self, generator: str | None = None, kept: Collection[int] = ()) -> list[LeaseRecord]:
        """The unanswered leases of one generator or of all, except the ids in `kept`."""
        return [
            lease
            for lease in self._unanswered.values()
            if generator in (None, lease.generator) and lease.lease_id not in kept
        ]

    def ids_of(self, generator: str) -> set[int]:
        """The ids of the leases that this generator has not answered."""
        return {lease.lease_id for lease in self.unanswered(generator)}

    def index_of(self, lease_id: int) -> int | None:
        """The admission index of an unanswered lease."""
        lease = self._unanswered.get(lease_id)
        return None if lease is None else lease.index

    def index_held(self, lease_id: int, generator: str) -> int | None:
        """The admission index of a lease by which this generator still holds its prompt."""
        lease = self._unanswered.get(lease_id)
        return lease.index if lease is not None and lease.generator == generator and self.holds(lease) else None

    def holder_of(self, index: int) -> str | None:
        """The generator that holds this prompt."""
        lease_id = self._lease_of.get(index)
        return None if lease_id is None else self._unanswered[lease_id].generator
