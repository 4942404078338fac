"""What holds of a ledger between any two transitions, told by the naive model of it."""

from __future__ import annotations

from hypothesis.stateful import invariant

from asyncrl.ledger.ledger import Ledger
from tests.support.naive_ledger import IN_PLAY, NaiveLedger


class LedgerInvariants(NaiveLedger):
    ledger: Ledger
    max_staleness: int

    @invariant()
    def no_prompt_is_lost_or_ends_twice(self) -> None:
        trained = [index for batch in self.batches for index in batch]
        assert len(trained) == len(set(trained))
        assert not set(trained) & set(self.ledger.quarantined)
        assert self.ledger.leases.num_held == len(self.indices("leased"))
        assert self.ledger.num_queued == len(self.indices("queued"))
        assert sorted(self.ledger.quarantined) == self.indices("quarantined")
        assert sorted(trained) == self.indices("trained")
        assert self.ledger.num_filtered == len(self.indices("filtered"))
        assert self.ledger.admission.num_skipped == len(self.indices("skipped"))

    @invariant()
    def admission_is_bounded(self) -> None:
        assert self.num_drawn_and_kept() <= (self.frontier + self.max_staleness + 1) * self.batch_size

    @invariant()
    def nothing_is_overtaken_by_more_than_the_window(self) -> None:
        trained = [index for batch in self.batches for index in batch]
        for place, index in enumerate(trained):
            num_overtakers = sum(before > index for before in trained[:place])
            assert not self.in_order or num_overtakers <= self.window
        assert all(batch == sorted(batch) for batch in self.batches)

    @invariant()
    def it_says_whom_the_next_batch_waits_for(self) -> None:
        missing = self.ledger.missing_for_batch()
        assert missing == [
            index for index in self.indices(*IN_PLAY)[: self.batch_size] if self.state[index] != "queued"
        ]
        for index in missing:
            held = self.valid.get(index)
            assert self.ledger.leases.holder_of(index) == (None if held is None else self.leases[held][1])
