"""Ledger and its store against a naive model of them: sets and lists, everything recomputed from the whole history.

Between any two transitions the process may be another one, which knows what SQLite has, and the learner may come back
from a checkpoint and ask for batches again."""

import math
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from asyncrl.errors import RunError
from asyncrl.ledger.curriculum import Curriculum
from asyncrl.ledger.ledger import Ledger
from asyncrl.ledger.records import PromptRecord
from asyncrl.ledger.store import LedgerStore
from asyncrl.replay.kept_completions import KeptCompletions
from asyncrl.transport.messages.rollouts import CompletionDone
from asyncrl.transport.wire import FRAMES_PER_GROUP, group_from_wire, group_to_wire
from tests.support.ledger_invariants import LedgerInvariants
from tests.support.naive_ledger import IN_PLAY
from tests.support.wire import make_group

GENERATORS = ("generator-0", "generator-1")
TIMEOUT_S = 10.0
SOLVED = st.sampled_from([0.0, 0.0, 0.5, 1.0])


class LedgerMachine(LedgerInvariants, RuleBasedStateMachine):
    @initialize(
        batch_size=st.integers(1, 3),
        max_staleness=st.integers(0, 2),
        num_steps=st.integers(1, 4),
        stragglers=st.sampled_from(["wait", "window", "mask", "requeue"]),
        window=st.integers(1, 6),
        num_visits=st.integers(0, 2),
        num_prompts=st.integers(1, 3),
        max_attempts=st.integers(1, 3),
        max_refill_prompts=st.integers(0, 6),
    )
    def begin(self, batch_size, max_staleness, num_steps, stragglers, window, num_visits, num_prompts, **limits):
        self.batch_size, self.max_staleness = batch_size, max_staleness
        if stragglers == "window":
            max_staleness = self.max_staleness = max(1, max_staleness)
        self.window = min(window, max_staleness * batch_size) if stragglers == "window" else 0
        self.in_order, self.requeues = stragglers in ("wait", "window"), stragglers == "requeue"
        self.num_visits, self.num_prompts = num_visits, num_prompts
        self.num_steps, self.max_attempts = num_steps, limits["max_attempts"]
        self.rules = {
            "batch_size": batch_size,
            "max_staleness": max_staleness,
            "num_steps": num_steps,
            "stragglers": stragglers,
            "window": self.window,
            "lease_timeout_s": TIMEOUT_S,
            **limits,
        }
        self.folder = tempfile.TemporaryDirectory()
        self.store = LedgerStore(Path(self.folder.name) / "ledger.sqlite", "off")
        self.ledger = Ledger(**self.rules, curriculum=self.curriculum())
        self.checkpoint = 0
        self.max_refill_prompts = limits["max_refill_prompts"]
        self.drawn_at_take = 0
        self.now_s = 0.0
        self.served: int | None = None
        self.state: dict[int, str] = {}
        self.solved: dict[int, float] = {}
        self.came_back_at: dict[int, int] = {}
        self.kept = KeptCompletions(group_size=2)
        self.kept_of: dict[int, set[int]] = {}  # index → versions of its kept completions
        self.sampled_by: dict[int, int] = {}  # lease → the oldest version among what it was given and samples itself
        self.finished: list[int] = []  # in order of completion
        self.batches: list[list[int]] = []
        self.leases: dict[int, tuple[int, str, float, int]] = {}  # id → index, generator, deadline, version then
        self.unanswered: set[int] = set()
        self.valid: dict[int, int] = {}  # index → its lease that has not expired
        self.failures: Counter[int] = Counter()
        self.sampled_at: dict[int, int] = {}  # index → version served when the answered lease was granted
        self.eta = max_staleness
        self.drawn_under: dict[int, int] = {}  # index → η when it was first leased

    # ── what can happen ──

    @rule(generator=st.sampled_from(GENERATORS))
    def lease(self, generator):
        expected = self.expected_index()
        lease = self.ledger.lease(generator, self.now_s)
        assert (lease and lease.index) == expected
        if lease is None:
            return
        for index in range(len(self.state), lease.index):
            self.state[index] = "skipped"
        assert lease.lease_id not in self.leases
        self.leases[lease.lease_id] = (lease.index, generator, lease.deadline_s, self.frontier)
        oldest = self.step - self.max_staleness
        kept, frames = self.kept.hand_on(lease.index, oldest)
        versions = [
            int(group_from_wire(each.header, frames[FRAMES_PER_GROUP * n :][:FRAMES_PER_GROUP]).versions.min())
            for n, each in enumerate(kept)
        ]
        expected_kept = {version for version in self.kept_of.get(lease.index, set()) if version >= oldest}
        assert set(versions) == expected_kept
        self.kept_of[lease.index] = expected_kept
        self.sampled_by[lease.lease_id] = min([self.frontier, *versions])
        self.unanswered.add(lease.lease_id)
        self.valid[lease.index] = lease.lease_id
        self.state[lease.index] = "leased"
        self.drawn_under.setdefault(lease.index, self.eta)

    @rule(data=st.data())
    @precondition(lambda self: self.unanswered)
    def a_completion_of_a_group_ends(self, data):
        """Also under leases that have been taken back, from whose holders nothing is kept."""
        lease_id = data.draw(st.sampled_from(sorted(self.unanswered)))
        index, generator, _, version = self.leases[lease_id]
        held = self.ledger.leases.index_held(lease_id, generator)
        assert held == (index if self.valid.get(index) == lease_id else None)
        assert self.ledger.leases.index_held(lease_id, "another") is None
        if held is not None and not self.kept_of.get(index):
            header, frames = group_to_wire(make_group(index, version, rewards=(1.0,)))
            self.kept.keep(index, CompletionDone(lease_id, 0, header), frames)
            self.kept_of[index] = {version}

    @rule(data=st.data())
    def move_eta(self, data):
        smallest = math.ceil(self.window / self.batch_size)  # below it the run would stand still
        self.eta = self.ledger.admission.eta = data.draw(st.integers(smallest, self.max_staleness))

    @rule(data=st.data())
    @precondition(lambda self: self.leases)
    def complete(self, data):
        """Also leases that were answered, expired or released before."""
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        self.complete_lease(lease_id, data.draw(st.booleans()), data.draw(SOLVED))

    @rule(data=st.data())
    @precondition(lambda self: self.valid)
    def complete_held(self, data):
        lease_id = data.draw(st.sampled_from(sorted(self.valid.values())))
        self.complete_lease(lease_id, data.draw(st.booleans()), data.draw(SOLVED))

    def complete_lease(self, lease_id, rewards_differ=True, solved=0.5):
        index, version = self.leases[lease_id][0], self.sampled_by[lease_id]
        counts = lease_id in self.unanswered and self.state[index] in ("leased", "waiting")
        self.unanswered.discard(lease_id)
        outcome = self.ledger.complete(lease_id, version, rewards_differ, solved)
        if not counts:
            assert outcome is None
            return
        self.valid.pop(index, None)
        self.kept.forget(index)
        self.kept_of.pop(index, None)
        self.solved[index], self.came_back_at[index] = solved, self.step
        if not rewards_differ and index in self.first_drawn_of_step():
            assert outcome == "filtered"
            self.state[index] = "filtered"
        else:
            assert outcome == "queued"
            self.state[index] = "queued"
            self.finished.append(index)
            self.sampled_at[index] = version

    @rule(data=st.data())
    @precondition(lambda self: self.leases)
    def fail(self, data):
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        held = lease_id in self.unanswered and self.valid.get(self.leases[lease_id][0]) == lease_id
        self.unanswered.discard(lease_id)
        assert self.ledger.fail(lease_id, "no luck") == (self.fail_in_model(lease_id) if held else None)

    @rule(seconds=st.sampled_from([1.0, TIMEOUT_S / 2, TIMEOUT_S]))
    def time_passes(self, seconds):
        self.now_s += seconds
        late = {lease_id for lease_id in self.valid.values() if self.leases[lease_id][2] <= self.now_s}
        expired = self.ledger.expire(self.now_s)
        assert {lease.lease_id for lease, _ in expired} == late
        assert [outcome for _, outcome in expired] == [self.fail_in_model(lease.lease_id) for lease, _ in expired]

    @rule(generator=st.sampled_from(GENERATORS))
    def generator_is_gone(self, generator):
        released = {lease.lease_id for lease in self.ledger.release(generator)}
        assert released == {lease_id for lease_id in self.valid.values() if self.leases[lease_id][1] == generator}
        for lease_id in released:
            index = self.leases[lease_id][0]
            del self.valid[index]
            self.state[index] = "waiting"
        self.unanswered -= {lease_id for lease_id in self.unanswered if self.leases[lease_id][1] == generator}

    @rule()
    def take_batch(self):
        if self.requeues:
            for index in [i for i in self.finished if self.step - self.sampled_at[i] > self.max_staleness]:
                self.finished.remove(index)
                self.state[index] = "waiting"
        expected = self.expected_batch()
        taken = self.ledger.take_batch(self.step)
        assert taken == expected
        if taken is None:
            return
        for index in taken:
            self.state[index] = "trained"
            self.finished.remove(index)
            self.came_back_at[index] = self.step
        self.drawn_at_take = max(self.state) + 1
        if self.in_order:
            assert all(self.step - self.sampled_at[index] <= self.drawn_under[index] for index in taken)
        if self.requeues:
            assert all(self.step - self.sampled_at[index] <= self.max_staleness for index in taken)
        self.batches.append(taken)
        assert self.ledger.next_step == self.step

    @rule(data=st.data())
    @precondition(lambda self: self.checkpoint < self.step)
    def learner_retraces_its_steps(self, data):
        step = data.draw(st.integers(self.checkpoint, self.step - 1))
        assert self.ledger.take_batch(step) == self.batches[step]

    @rule(data=st.data())
    def learner_saves_a_checkpoint(self, data):
        self.checkpoint = data.draw(st.integers(self.checkpoint, self.step))
        self.ledger.checkpointed(self.checkpoint)
        if self.checkpoint:
            with pytest.raises(RunError, match="is asked for"):
                self.ledger.take_batch(self.checkpoint - 1)

    @rule()
    def what_has_changed_is_committed(self):
        self.store.commit(self.ledger.take_changes(), self.ledger.counters)

    @rule(with_the_whole_run=st.booleans())
    def another_process_takes_over(self, with_the_whole_run):
        self.what_has_changed_is_committed()
        self.store.close()
        self.store = LedgerStore(Path(self.folder.name) / "ledger.sqlite", "off")
        self.store.begin_session(began_anew=with_the_whole_run)
        self.kept, self.kept_of = KeptCompletions(group_size=2), {}
        snapshot = self.store.snapshot()
        curriculum = self.curriculum(self.store.history(), snapshot.next_step)
        self.ledger = Ledger(**self.rules, curriculum=curriculum, snapshot=snapshot, now_s=self.now_s)
        if with_the_whole_run:
            self.ledger.begin_session()
            self.served = None
            for index in self.valid:
                self.state[index] = "waiting"
            self.valid.clear()
        self.unanswered = set(self.valid.values())
        for lease_id in self.unanswered:
            index, generator, _, version = self.leases[lease_id]
            self.leases[lease_id] = (index, generator, self.now_s + TIMEOUT_S, version)

    def curriculum(self, *known):
        return Curriculum(self.num_visits, lambda index: index % self.num_prompts, *known) if self.num_visits else None

    @rule()
    @precondition(lambda self: self.served is None or self.served < self.step)
    def publish(self):
        """Every version in turn, and none before its step was taken; after a restart of all, the latest."""
        self.served = self.step if self.served is None else self.served + 1
        self.ledger.admission.published(self.served)

    def teardown(self):
        """From wherever it stands, the run can be brought to its end: exactly num_steps · B prompts are trained."""
        if not hasattr(self, "ledger"):
            return
        self.another_process_takes_over(with_the_whole_run=True)
        while self.step < self.num_steps:
            before = (self.step, self.served, len(self.finished))
            if self.served is None or self.served < self.step:
                self.publish()
            while self.expected_index() is not None:
                self.lease("generator-1")
            for lease_id in sorted(self.valid.values()):
                self.complete_lease(lease_id)
            self.take_batch()
            assert (self.step, self.served, len(self.finished)) != before, "the run stands still"
        self.no_prompt_is_lost_or_ends_twice()
        assert self.num_drawn_and_kept() == self.num_steps * self.batch_size
        assert not self.indices(*IN_PLAY)
        self.ledger.checkpointed(self.num_steps)
        self.what_has_changed_is_committed()
        assert self.store.snapshot().records == [
            PromptRecord(index, "quarantined", self.failures[index], reason=self.ledger.quarantined[index])
            for index in self.indices("quarantined")
        ]
        self.store.close()
        self.folder.cleanup()


TestLedgerAgainstItsModel = LedgerMachine.TestCase
TestLedgerAgainstItsModel.settings = settings(max_examples=170, stateful_step_count=60, deadline=None)
