"""What a ledger must answer, told from sets and lists of its whole history."""

from __future__ import annotations

from collections import Counter

IN_PLAY = ("leased", "waiting", "queued")


class NaiveLedger:
    """Every answer is recomputed from the state; whoever drives it keeps the state."""

    batch_size: int
    in_order: bool
    num_steps: int
    max_attempts: int
    max_refill_prompts: int
    eta: int
    served: int | None
    drawn_at_take: int
    state: dict[int, str]
    finished: list[int]
    """In order of completion."""
    batches: list[list[int]]
    leases: dict[int, tuple[int, str, float, int]]
    """Lease id → index, generator, deadline, version then."""
    valid: dict[int, int]
    """Index → its lease that has not expired."""
    failures: Counter[int]

    @property
    def step(self) -> int:
        return len(self.batches)

    @property
    def frontier(self) -> int:
        """The oldest version that a generator with a lease can serve."""
        return self.step if self.served is None else self.served

    def indices(self, *states: str) -> list[int]:
        return sorted(index for index, state in self.state.items() if state in states)

    def num_drawn_and_kept(self) -> int:
        return len(self.indices(*IN_PLAY, "trained"))

    def expected_index(self) -> int | None:
        waiting = self.indices("waiting")
        if waiting:
            return waiting[0]
        if self.served is None:
            return None
        if self.num_drawn_and_kept() >= self.batch_size * min(self.served + self.eta + 1, self.num_steps):
            return None
        return len(self.state)

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
