"""Ledger against a naive model of it: sets and lists, everything recomputed from the whole history."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncrl.replay.ledger import Ledger

GENERATORS = ("generator-0", "generator-1")
TIMEOUT_S = 10.0
IN_PLAY = ("leased", "waiting", "queued")


class LedgerMachine(RuleBasedStateMachine):
    @initialize(
        batch_size=st.integers(1, 3),
        max_staleness=st.integers(0, 2),
        num_steps=st.integers(1, 4),
        in_order=st.booleans(),
        max_attempts=st.integers(1, 3),
        version=st.integers(0, 2),
        next_index=st.integers(0, 3),
        gaps=st.sets(st.integers(1, 5), max_size=3),
        max_refill_prompts=st.integers(0, 6),
    )
    def begin(
        self,
        batch_size,
        max_staleness,
        num_steps,
        in_order,
        max_attempts,
        version,
        next_index,
        gaps,
        max_refill_prompts,
    ):
        self.batch_size, self.max_staleness, self.in_order = batch_size, max_staleness, in_order
        self.num_steps, self.max_attempts = version + num_steps, max_attempts
        self.first_step, self.first_index = version, next_index
        self.ended_before = {next_index + gap for gap in gaps}
        self.ledger = Ledger(
            batch_size=batch_size,
            max_staleness=max_staleness,
            num_steps=self.num_steps,
            in_order=in_order,
            lease_timeout_s=TIMEOUT_S,
            max_attempts=max_attempts,
            max_refill_prompts=max_refill_prompts,
            version=version,
            next_index=next_index,
            ended=sorted(self.ended_before),
        )
        self.max_refill_prompts = max_refill_prompts
        self.drawn_at_take = next_index
        self.now_s = 0.0
        self.served: int | None = None
        self.state: dict[int, str] = {}
        self.finished: list[int] = []  # in order of completion
        self.batches: list[list[int]] = []
        self.leases: dict[int, tuple[int, str, float, int]] = {}  # id → index, generator, deadline, version then
        self.unanswered: set[int] = set()
        self.valid: dict[int, int] = {}  # index → its lease that has not expired
        self.failures: Counter[int] = Counter()
        self.sampled_at: dict[int, int] = {}  # index → version served when the answered lease was granted
        self.eta = max_staleness
        self.drawn_under: dict[int, int] = {}  # index → η when it was first leased

    # ── the model's view ──

    @property
    def step(self) -> int:
        return self.first_step + len(self.batches)

    def indices(self, *states: str) -> list[int]:
        return sorted(index for index, state in self.state.items() if state in states)

    def num_drawn_and_kept(self) -> int:
        return self.first_step * self.batch_size + len(self.indices(*IN_PLAY, "trained"))

    def expected_index(self) -> int | None:
        waiting = self.indices("waiting")
        if waiting:
            return waiting[0]
        if self.served is None:
            return None
        if self.num_drawn_and_kept() >= self.batch_size * min(self.served + self.eta + 1, self.num_steps):
            return None
        index = self.first_index
        while index in self.state or index in self.ended_before:
            index += 1
        return index

    def first_drawn_of_step(self) -> list[int]:
        """What was drawn before the last batch was taken, and the max_refill_prompts indices after that."""
        if self.max_refill_prompts == 0:
            return []
        return list(range(self.drawn_at_take + self.max_refill_prompts))

    def expected_batch(self) -> list[int] | None:
        oldest = self.indices(*IN_PLAY) if self.in_order else self.finished
        batch = sorted(oldest[: self.batch_size])
        whole = len(batch) == self.batch_size and all(self.state[index] == "queued" for index in batch)
        return batch if whole else None

    def fail_in_model(self, lease_id: int) -> str:
        index = self.leases[lease_id][0]
        del self.valid[index]
        self.failures[index] += 1
        outcome = "quarantined" if self.failures[index] == self.max_attempts else "retried"
        self.state[index] = "quarantined" if outcome == "quarantined" else "waiting"
        return outcome

    # ── what can happen ──

    @rule(generator=st.sampled_from(GENERATORS))
    def lease(self, generator):
        expected = self.expected_index()
        lease = self.ledger.lease(generator, self.now_s)
        assert (lease and lease.index) == expected
        if lease is None:
            return
        assert lease.lease_id not in self.leases
        self.leases[lease.lease_id] = (lease.index, generator, lease.deadline_s, self.served)
        self.unanswered.add(lease.lease_id)
        self.valid[lease.index] = lease.lease_id
        self.state[lease.index] = "leased"
        self.drawn_under.setdefault(lease.index, self.eta)

    @rule(data=st.data())
    def move_eta(self, data):
        self.eta = self.ledger.eta = data.draw(st.integers(0, self.max_staleness))

    @rule(data=st.data())
    @precondition(lambda self: self.leases)
    def complete(self, data):
        """Also leases that were answered, expired or released before."""
        self.complete_lease(data.draw(st.sampled_from(sorted(self.leases))), data.draw(st.booleans()))

    @rule(data=st.data())
    @precondition(lambda self: self.valid)
    def complete_held(self, data):
        self.complete_lease(data.draw(st.sampled_from(sorted(self.valid.values()))), data.draw(st.booleans()))

    def complete_lease(self, lease_id, has_signal=True):
        index, _, _, version = self.leases[lease_id]
        counts = lease_id in self.unanswered and self.state[index] in ("leased", "waiting")
        self.unanswered.discard(lease_id)
        outcome = self.ledger.complete(lease_id, has_signal)
        if not counts:
            assert outcome is None
            return
        self.valid.pop(index, None)
        if not has_signal and index in self.first_drawn_of_step():
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
        expected = self.expected_batch()
        taken = self.ledger.take_batch()
        assert (taken and taken.indices) == expected
        if taken is None:
            return
        for index in taken.indices:
            self.state[index] = "trained"
            self.finished.remove(index)
        self.drawn_at_take = max(self.state) + 1
        ended = self.ended_before | set(self.indices("trained", "filtered", "quarantined"))
        assert taken.next_index not in ended
        assert set(range(self.first_index, taken.next_index)) <= ended
        assert taken.ended == sorted(index for index in ended if index > taken.next_index)
        if self.in_order:
            assert all(self.step - self.sampled_at[index] <= self.drawn_under[index] for index in taken.indices)
        self.batches.append(taken.indices)
        assert self.ledger.next_step == self.step

    @rule()
    @precondition(lambda self: self.served is None or self.served < self.step)
    def publish(self):
        """Every version in turn, and none before its step was taken."""
        self.served = self.first_step if self.served is None else self.served + 1
        self.ledger.published(self.served)

    # ── what always holds ──

    @invariant()
    def no_prompt_is_lost_or_ends_twice(self):
        trained = [index for batch in self.batches for index in batch]
        assert len(trained) == len(set(trained))
        assert not set(trained) & set(self.ledger.quarantined)
        assert self.ledger.num_leased == len(self.indices("leased"))
        assert self.ledger.num_queued == len(self.indices("queued"))
        assert sorted(self.ledger.quarantined) == self.indices("quarantined")
        assert sorted(trained) == self.indices("trained")
        assert self.ledger.num_filtered == len(self.indices("filtered"))

    @invariant()
    def admission_is_bounded(self):
        if self.served is None:
            assert not self.state
        else:
            assert self.num_drawn_and_kept() <= (self.served + self.max_staleness + 1) * self.batch_size

    @invariant()
    def batches_are_in_admission_order(self):
        trained = [index for batch in self.batches for index in batch]
        assert not self.in_order or trained == sorted(trained)
        assert all(batch == sorted(batch) for batch in self.batches)

    @invariant()
    def it_says_whom_the_next_batch_waits_for(self):
        missing = self.ledger.missing_for_batch()
        assert missing == [
            index for index in self.indices(*IN_PLAY)[: self.batch_size] if self.state[index] != "queued"
        ]
        for index in missing:
            held = self.valid.get(index)
            assert self.ledger.holder_of(index) == (None if held is None else self.leases[held][1])

    def teardown(self):
        """From wherever it stands, the run can be brought to its end: exactly num_steps · B prompts are trained."""
        if not hasattr(self, "ledger"):
            return
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


TestLedgerAgainstItsModel = LedgerMachine.TestCase
TestLedgerAgainstItsModel.settings = settings(max_examples=150, stateful_step_count=60)
