"""The ledger: every prompt's life, and when the next one may be drawn. Pure: no clock, no sockets, no threads.

    drawn ──▶ leased ──▶ queued ──▶ batched ──▶ trained     (each prompt ends exactly once: trained, filtered,
      ▲ │        │  │                                                                     skipped or quarantined)
      │ └──▶ skipped by the curriculum, so another prompt takes its place
      │          │  └──▶ filtered: its rewards are all equal, so another prompt takes its place
      └─ waiting ┤ failed, expired or released
                 └──▶ quarantined, after `max_attempts` failures; a death of its generator counts as one

A prompt's name is its admission index: 0, 1, 2, … in the order in which prompts were drawn.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import replace
from typing import Literal

from asyncrl.ledger.admission import Admission
from asyncrl.ledger.batch_assembly import BatchAssembly
from asyncrl.ledger.curriculum import Curriculum
from asyncrl.ledger.leases import LeaseTable
from asyncrl.ledger.records import LeaseRecord, LedgerSnapshot, PromptRecord, Stragglers

Failure = Literal["retried", "quarantined"]
Completion = Literal["queued", "filtered"]


class Ledger:
    """Draws, leases, queues and batches prompts under the staleness bound.

    Args:
        batch_size: B.
        max_staleness: η; `admission.eta` may be set lower later.
        num_steps: the run's length; num_steps·B prompts are drawn, and replacements of those filtered, quarantined and
            skipped.
        stragglers: what happens to prompts that come back late, see `records.Stragglers`.
        window: with stragglers=window, how many prompts may be trained before one that was drawn before them.
        lease_timeout_s: a lease not answered by then is taken back.
        max_attempts: failures (or expired leases) after which a prompt is quarantined.
        max_refill_prompts: after each batch, this many of the prompts drawn next are filtered if their rewards are all
            equal. Counted by admission index, not by time, so that at η = 0 it does not depend on who answers first.
            0 = none is filtered.
        curriculum: says which draws are skipped; None = none.
        snapshot: where an earlier ledger stood; this one continues there.
        now_s: the leases of `snapshot` start over at this time.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        max_staleness: int,
        num_steps: int,
        stragglers: Stragglers,
        window: int = 0,
        lease_timeout_s: float,
        max_attempts: int,
        max_refill_prompts: int = 0,
        curriculum: Curriculum | None = None,
        snapshot: LedgerSnapshot | None = None,
        now_s: float = 0.0,
    ) -> None:
        snapshot = snapshot or LedgerSnapshot()
        self._batch_size = batch_size
        self._max_staleness = max_staleness
        self._requeues = stragglers == "requeue"
        self._curriculum = curriculum
        window = window if stragglers == "window" else 0
        self.admission = Admission(batch_size, max_staleness, num_steps, window, curriculum, snapshot)
        self._max_attempts = max_attempts
        self._max_refill_prompts = max_refill_prompts
        self._refill_end = max_refill_prompts if snapshot.refill_end is None else snapshot.refill_end
        self.leases = LeaseTable(lease_timeout_s, snapshot.next_lease_id)
        self._batches = BatchAssembly(batch_size, stragglers, snapshot, window)
        self.quarantined: dict[int, str] = {}
        self.num_filtered = snapshot.num_filtered
        self.num_requeued = snapshot.num_requeued
        self._changes: dict[int, PromptRecord] = {}
        for record in snapshot.records:
            self.leases.restore(record, now_s)
            if record.state == "quarantined":
                self.quarantined[record.index] = record.reason or ""

    # ── what another process needs ──

    def take_changes(self) -> list[PromptRecord]:
        """Each prompt whose life has changed since the last call, as it stands now."""
        changes, self._changes = list(self._changes.values()), {}
        return changes

    @property
    def counters(self) -> dict[str, int]:
        """The rest of the ledger's snapshot, by the names of `LedgerSnapshot`'s fields."""
        counters = {
            "next_step": self.next_step,
            "next_index": self._batches.low,
            "drawn_to": self.admission.drawn_to,
            "num_filtered": self.num_filtered,
            "num_requeued": self.num_requeued,
            "num_skipped": self.admission.num_skipped,
            "next_lease_id": self.leases.next_lease_id,
            "eta": self.admission.eta,
            "refill_end": self._refill_end,
        }
        served = self.admission.served_version
        return counters if served is None else {**counters, "served_version": served}

    def _note(self, record: PromptRecord) -> None:
        before = self._changes.get(record.index)
        if before is not None and before.solved is not None and record.solved is None:  # not committed: do not lose it
            record = replace(record, solved=before.solved)
        self._changes[record.index] = record

    def begin_session(self) -> None:
        """All generators are new: takes back every lease; no version is served."""
        self._release(self.leases.unanswered())
        self.admission.close()

    # ── drawing and leasing ──

    def lease(self, generator: str, now_s: float) -> LeaseRecord | None:
        """The next prompt for this generator, or None while none may be drawn."""
        index = self._next_index()
        if index is None:
            return None
        lease = self.leases.grant(index, generator, now_s)
        self._note(PromptRecord(index, "leased", self.leases.num_failures(index), generator, lease.lease_id))
        return lease

    def _next_index(self) -> int | None:
        waiting = self.leases.next_in_line()
        if waiting is not None:
            return waiting
        in_play = self.leases.num_open + len(self._batches.queued)
        skipped, drawn = self.admission.draw(self._batches.num_taken + in_play)
        for index in skipped:
            self._note(PromptRecord(index, "skipped"))
            self._batches.mark_ended(index)
        return drawn

    # ── how a lease ends ──

    def complete(
        self, lease_id: int, first_version: int, rewards_differ: bool = True, solved: float | None = None
    ) -> Completion | None:
        """A group came back. None: its prompt has ended or was answered under another lease.

        A late answer to an expired lease counts while its prompt is still open.

        Args:
            first_version: the version that sampled the group's oldest token.
            solved: share of its scored completions that are correct; None = none was scored.
        """
        lease = self.leases.answer(lease_id)
        if lease is None or not self.leases.is_open(lease.index):
            return None
        self.leases.close(lease.index)
        is_filtered = not rewards_differ and self._max_refill_prompts > 0 and lease.index < self._refill_end
        if self._curriculum is not None and solved is not None:
            self._curriculum.visited(lease.index, solved, is_filtered)
        if is_filtered:
            self.num_filtered += 1
            self._note(PromptRecord(lease.index, "filtered", step=self.next_step, solved=solved))
            self._batches.mark_ended(lease.index)
            return "filtered"
        self._note(self._batches.put(lease.index, first_version, solved))
        return "queued"

    def fail(self, lease_id: int, reason: str) -> Failure | None:
        """A lease came back without a usable group. None: it had expired, which counted as its failure."""
        lease = self.leases.answer(lease_id)
        return self._failed(lease, reason) if lease is not None and self.leases.holds(lease) else None

    def expire(self, now_s: float) -> list[tuple[LeaseRecord, Failure]]:
        """Takes back the leases whose deadline has passed; the prompts go to the next generator that asks."""
        late = self.leases.late(now_s)
        return [(lease, self._failed(lease, lease.why_late)) for lease in late]

    def release(self, generator: str, kept: Collection[int] = ()) -> list[LeaseRecord]:
        """Takes back a generator's leases, except those whose ids it says it still has."""
        return self._release(self.leases.unanswered(generator, kept))

    def _release(self, leases: list[LeaseRecord]) -> list[LeaseRecord]:
        held = [lease for lease in leases if self.leases.holds(lease)]
        for lease in held:
            self._take_back(lease)
        self.leases.forget(leases)
        return held

    def generator_died(self, generator: str, reason: str) -> list[tuple[LeaseRecord, Failure]]:
        """Takes back the leases of a generator that died. Each prompt may be the cause, so each counts a failure."""
        leases = self.leases.unanswered(generator)
        lost = [(lease, self._failed(lease, reason)) for lease in leases if self.leases.holds(lease)]
        self.leases.forget(leases)
        return lost

    def _failed(self, lease: LeaseRecord, reason: str) -> Failure:
        num_failures = self.leases.count_failure(lease.index)
        if num_failures < self._max_attempts:
            self._take_back(lease)
            return "retried"
        self.leases.close(lease.index)
        self.quarantined[lease.index] = reason
        self._note(PromptRecord(lease.index, "quarantined", num_failures, reason=reason))
        self._batches.mark_ended(lease.index)
        return "quarantined"

    def _take_back(self, lease: LeaseRecord) -> None:
        self.leases.take_back(lease)
        self._note_waiting(lease.index)

    def _note_waiting(self, index: int) -> None:
        self._note(PromptRecord(index, "waiting", self.leases.num_failures(index)))

    # ── batches and versions ──

    def take_batch(self, step: int) -> list[int] | None:
        """The admission indices of the step's B finished groups, in order, or None until they are there.

        They count as trained from here on. A step whose batch was taken before gets the same batch.

        Raises:
            RunError: a checkpoint contains the step, or steps before it have not been taken.
        """
        kept = self._batches.kept(step)
        if kept is not None:
            return kept
        if self._requeues:
            for index in self._batches.drop_stale(self._max_staleness):
                self.num_requeued += 1
                self.leases.line_up(index)
                self._note_waiting(index)
        taken = self._batches.assemble()
        if taken is None:
            return None
        for record in taken:
            self._note(record)
        if self._curriculum is not None:
            self._curriculum.step_taken(record.index for record in taken)
        self._refill_end = self.admission.drawn_to + self._max_refill_prompts
        return [record.index for record in taken]

    def checkpointed(self, step: int) -> None:
        """The checkpoint after `step` steps is whole, so the batches of these steps need not be kept."""
        for record in self._batches.checkpointed(step):
            self._note(record)

    # ── figures ──

    @property
    def next_step(self) -> int:
        """The first step whose batch has not been taken."""
        return self._batches.next_step

    @property
    def num_queued(self) -> int:
        return len(self._batches.queued)

    def missing_for_batch(self) -> list[int]:
        """Which of the B oldest prompts in play have not come back; for messages."""
        queued = self._batches.queued
        oldest = heapq.nsmallest(self._batch_size, [*self.leases.open_indices, *queued])
        return [index for index in oldest if index not in queued]
